"""Standard errors and paired intervals against values known by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coremat.errors import DataError
from coremat.results import statistics
from coremat.results.statistics import paired_bootstrap, standard_error


def test_standard_error_by_hand():
    # three of four right: variance (3 * 0.25**2 + 0.75**2) / 3 = 0.25, so 0.5 / sqrt(4)
    assert standard_error([1, 1, 1, 0]) == pytest.approx(0.25)
    assert standard_error([100.0, 100.0, 100.0, 0.0]) == pytest.approx(25.0)
    assert standard_error([True, True]) == 0.0


@pytest.mark.parametrize("scores", [[], [1.0]])
def test_no_standard_error_below_two_samples(scores):
    assert standard_error(scores) is None


def test_all_resamples_of_four_questions():
    """The interval of four questions, from all 256 equally likely resamples."""
    means = [sum(draw) / 4 for draw in itertools.product([1, 0, -1, 0], repeat=4)]
    low, high = np.percentile(means, (2.5, 97.5), method="inverted_cdf")
    assert (low, high) == (-0.75, 0.75)
    assert paired_bootstrap([1, 1, 0, 0], [0, 1, 1, 0], repeats=100_000) == (0.0, low, high)


def test_interval_is_that_of_a_large_sample():
    """With many questions the interval is the normal one: 1.96 standard errors of the paired difference."""
    generator = np.random.default_rng(5)
    a, b = generator.random(5_000) < 0.9, generator.random(5_000) < 0.85
    difference, low, high = paired_bootstrap(a, b)
    error = standard_error(a.astype(float) - b.astype(float))
    assert difference == pytest.approx(a.mean() - b.mean())
    assert error is not None
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert (low + high) / 2 == pytest.approx(difference, abs=error / 10)


def test_pairs_count_not_margins():
    """Two methods that fail on the same questions differ surely; paired with each other's failures they do not."""
    a = [1.0] * 60 + [0.0] * 40
    b = [1.0] * 50 + [0.0] * 50
    assert paired_bootstrap(a, b)[1] > 0
    assert paired_bootstrap(a, b[::-1])[1] < 0


def test_equal_scores_have_no_interval():
    assert paired_bootstrap([1, 0, 1], [1, 0, 1]) == (0.0, 0.0, 0.0)


scores = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=30)


@settings(deadline=None)
@given(pairs=scores, order=st.randoms(use_true_random=False))
def test_deterministic_in_any_order(pairs, order):
    shuffled = list(pairs)
    order.shuffle(shuffled)
    first = paired_bootstrap(*zip(*pairs, strict=True), repeats=200)
    second = paired_bootstrap(*zip(*shuffled, strict=True), repeats=200)
    assert first == pytest.approx(second)
    differences = [a - b for a, b in pairs]
    assert min(differences) - 1e-9 <= first[1] <= first[2] <= max(differences) + 1e-9
    assert first[0] == pytest.approx(sum(differences) / len(differences))


def test_seed_changes_the_draw():
    a, b = np.arange(50.0), np.arange(50.0)[::-1] * 0.7
    assert paired_bootstrap(a, b, repeats=100) == paired_bootstrap(a, b, repeats=100)
    assert paired_bootstrap(a, b, repeats=100) != paired_bootstrap(a, b, repeats=100, seed=1)


def test_memory_bound_changes_nothing(monkeypatch):
    a, b = np.arange(40.0), np.sqrt(np.arange(40.0))
    whole = paired_bootstrap(a, b, repeats=333)
    monkeypatch.setattr(statistics, "DRAWS_AT_ONCE", 100)
    assert paired_bootstrap(a, b, repeats=333) == whole


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 0.0]), ([], [])])
def test_unpaired_scores_are_refused(a, b):
    with pytest.raises(DataError, match=f"not {len(a)} and {len(b)}"):
        paired_bootstrap(a, b)


def test_missing_scores_are_refused():
    with pytest.raises(DataError, match="missing or infinite"):
        standard_error([1.0, math.nan])
    with pytest.raises(DataError, match="missing or infinite"):
        paired_bootstrap([1.0], [math.inf])
