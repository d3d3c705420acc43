"""Spread core tokens against loops over the points, and what the order is made for: cover, and salience."""

from fractions import Fraction
from itertools import accumulate

import pytest
import reference
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from neuron_views import layers
from strategies import quick

from coremat.methods.base import Stage
from coremat.methods.corematching.core_neurons import core_neurons, votes_of
from coremat.methods.corematching.spread_core_tokens import SpreadCoreTokens, spread, van_der_corput

STAGE = Stage(2, 4)


def mirrored(number: int) -> Fraction:
    """The bits of a whole number behind the point."""
    value, place = Fraction(0), Fraction(1, 2)
    while number:
        value, number, place = value + place * (number % 2), number // 2, place / 2
    return value


@pytest.mark.parametrize("count", [1, 2, 8, 64])
def test_points_are_mirrored_numbers(count):
    half = Fraction(1, 2 * count)
    assert van_der_corput(count).tolist() == [float(mirrored(number) + half) for number in range(count)]


def enough(weights: list[Fraction]) -> int:
    return 1 << int(len(weights) * Fraction(11, 1)).bit_length()


def ends_on_a_point(weights: list[Fraction]) -> bool:
    """Where a token ends exactly on a point, floating point may see it on either side."""
    places = [2 * enough(weights) * end / sum(weights) for end in accumulate(weights)]
    return any(place.denominator == 1 and place.numerator % 2 for place in places)


def ranks_by_loop(weights: list[Fraction]) -> list[int]:
    """Points are taken one by one; each gives its place in the order to the token it falls on, if that has none yet."""
    ranks: list[int | None] = [None] * len(weights)
    count = enough(weights)
    for number in range(count):
        point, end = (mirrored(number) + Fraction(1, 2 * count)) * sum(weights), Fraction(0)
        for token, weight in enumerate(weights):
            end += weight
            if point < end:
                ranks[token] = number if ranks[token] is None else ranks[token]
                break
    return [count if rank is None else rank for rank in ranks]


@quick
@given(
    st.lists(st.one_of(st.none(), st.integers(0, 16)), min_size=1, max_size=12).filter(
        lambda w: any(v is not None for v in w)
    )
)
def test_a_token_has_the_rank_of_the_first_point_that_falls_on_it(given_weights):
    weights = [Fraction(0) if value is None else Fraction(1, 10) + Fraction(value, 16) for value in given_weights]
    assume(not ends_on_a_point(weights))
    found = spread(torch.tensor([[float(weight) for weight in weights]], dtype=torch.float64), 0.1)[0].tolist()
    assert found == ranks_by_loop(weights)
    there = [rank for rank, weight in zip(found, weights, strict=True) if weight]
    assert len(set(there)) == len(there), "no two image tokens share a rank"


@quick
@given(layers())
def test_weights_are_the_core_neurons_that_a_token_does_not_activate(layer):
    method = SpreadCoreTokens(alpha=0.3, beta=0.5)
    found = method.score(STAGE, layer)
    core = core_neurons(votes_of(layer, 0.3, "all"), 0.5)
    for row, chosen, image, scores in zip(layer.activations, core, layer.image, found, strict=True):
        if not image.any():
            continue
        counts = reference.core_neuron_counts(row.double().nan_to_num(-1).tolist(), chosen.tolist())
        own = [count for count, seen in zip(counts, image.tolist(), strict=True) if seen]
        span = max(1, max(own) - min(own))
        weights = [
            Fraction(1, 10) + Fraction(max(own) - count, span) if seen else Fraction(0)
            for count, seen in zip(counts, image.tolist(), strict=True)
        ]
        assume(not ends_on_a_point(weights))
        there = [number for number, seen in enumerate(image.tolist()) if seen]
        expected, ranks = ranks_by_loop(weights), (-scores).tolist()
        assert sorted(there, key=ranks.__getitem__) == sorted(there, key=expected.__getitem__)


def test_equal_tokens_are_kept_evenly():
    ranks = spread(torch.full((1, 64), 0.1), 0.1)[0]
    for count in (2, 4, 8, 16):
        kept = ranks.argsort()[:count].sort().values
        assert set(kept.diff().tolist()) == {64 // count}


def test_salient_tokens_are_kept_more_densely_and_the_others_not_forgotten():
    weights = torch.full((1, 100), 0.1)
    weights[0, 40:50] = 1.1
    kept = spread(weights, 0.1)[0].argsort()[:16].tolist()
    assert sum(40 <= token < 50 for token in kept) >= 8
    assert min(kept) < 20
    assert max(kept) > 80
