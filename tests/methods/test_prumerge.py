"""PruMerge and PruMerge+ against loops, and on images where the outliers are known."""

import math

import pytest
import reference_rivals
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_views import LAYER, held, kept, shares, views, written_view
from strategies import quick

from coremat.methods.budget import budget
from coremat.methods.prumerge import PruMerge, PruMergePlus, nearest


def prumerge(view, count=None, plus=False, **options):
    """count: of places, None for the rule's own."""
    method = PruMergePlus if plus else PruMerge
    return method(tower_layer=LAYER, **options).before_projector(view, count)


PLUS = pytest.mark.parametrize("plus", [False, True])


@PLUS
@quick
@given(views(), st.data())
def test_places_and_what_they_hold_are_those_of_the_loops(plus, view, data):
    count = data.draw(st.none() | st.integers(1, len(view.features)))
    neighbours, fence = data.draw(st.sampled_from([1, 4, 32])), data.draw(st.sampled_from([0.0, 0.5, 1.5, 3.0]))
    found = prumerge(view, count, plus, neighbours=neighbours, fence=fence)
    rows = (part.tolist() for part in (view.features, view.tower[LAYER].queries, view.tower[LAYER].keys))
    wanted = reference_rivals.prumerge(*rows, count, plus, neighbours, fence)
    assert kept(found.keep) == sorted(wanted)
    for place, row in wanted.items():
        torch.testing.assert_close(held(view, found)[place], torch.tensor(row), rtol=1e-3, atol=1e-5)


def test_the_outlier_takes_in_its_neighbours_and_the_last_dropped_place_the_rest():
    weights = [1.0, 1, 1, 10, 1, 1, 1, 1]
    found = prumerge(written_view(weights))
    rest = sum(j * shares(weights)[j] for j in (0, 1, 2, 4, 5, 6, 7))
    assert kept(found.keep) == [3, 7]
    torch.testing.assert_close(found.features[:, 0][[3, 7]], torch.stack([3 + rest, rest]))


def test_places_at_even_distances_are_added():
    """Two outliers of 25 places: every fourth place (25 // 6), the last of all excepted, and the extra token there."""
    weights = [1.0] * 25
    weights[5] = weights[8] = 20.0
    assert kept(prumerge(written_view(weights), None, plus=True).keep) == [0, 4, 5, 8, 12, 16, 20, 24]


@PLUS
def test_a_flat_map_keeps_one_place_at_least(plus):
    chosen = [0, 2, 4, 6, 7] if plus else [0, 7]
    assert kept(prumerge(written_view([1.0] * 8), None, plus).keep) == chosen


@PLUS
@pytest.mark.parametrize("places", [1, 2, 3])
def test_an_image_of_a_few_places(plus, places):
    """The even distance is at least one place."""
    assert prumerge(written_view([1.0] * places), None, plus).keep.sum() == min(places, 2 + (plus and places == 3))


@PLUS
@pytest.mark.parametrize("tokens", [1, 2, 3, 16, 39, 40, 0.1, 0.25])
def test_the_extra_token_is_part_of_the_budget(plus, tokens):
    view = written_view([1.0 + math.sin(j) / 2 for j in range(40)])
    wanted = tokens if isinstance(tokens, int) else int(40 * tokens)
    assert prumerge(view, budget(tokens, 40), plus).keep.sum() == wanted


@PLUS
def test_half_of_a_budget_of_prumerge_plus_is_spread_out(plus):
    """Four places and the extra one: the four heaviest, or the two heaviest and two in the midst of what is left."""
    weights = [9.0, 8, 7, 6, 1, 1, 1, 1, 1, 1]
    spread, dense = [0, 1, 4, 8, 9], [0, 1, 2, 3, 9]
    assert kept(prumerge(written_view(weights), 5, plus).keep) == (spread if plus else dense)


def test_where_all_stay_nothing_is_merged():
    view = written_view([1.0, 1, 1, 10, 1, 1, 1, 1])
    found = prumerge(view, 8)
    assert found.keep.all()
    assert found.features is None
    assert PruMerge(tokens="all").stages(6) == ()


def test_neighbours_are_the_32_nearest_others():
    angles = torch.arange(40) * 0.05
    near = nearest(torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 39]), 32)
    assert near.tolist() == [list(range(1, 33)), list(range(38, 6, -1))]


def test_equal_neighbours_go_to_the_lower_place():
    near = nearest(torch.tensor([[1.0, 0.0]] * 40), torch.tensor([5]), 32)
    assert near.tolist() == [[j for j in range(33) if j != 5]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(dtype):
    view = written_view([1.0, 1, 1, 10, 1, 1, 1, 1], dtype=dtype)
    found, wanted = prumerge(view, 3), prumerge(written_view([1.0, 1, 1, 10, 1, 1, 1, 1]), 3)
    assert found.features.dtype == dtype
    assert torch.equal(found.keep, wanted.keep)
    torch.testing.assert_close(found.features.float()[found.keep], wanted.features[wanted.keep], rtol=0.02, atol=0.02)


@PLUS
def test_more_neighbours_or_a_higher_fence_change_the_choice_as_they_say(plus):
    weights = [1.0, 1, 1, 10, 4, 1, 1, 1]
    low, high = (kept(prumerge(written_view(weights), fence=fence).keep) for fence in (0.5, 1e6))
    assert (low, high) == ([3, 4, 7], [3, 7])  # above the fence 4 is one too; at least one is chosen
    one = prumerge(written_view(weights), 2, plus, neighbours=1)
    torch.testing.assert_close(one.features[3, 0], 3 + 0 * shares(weights)[0])  # equally like: the first, which holds 0
