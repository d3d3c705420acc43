"""What a count or a share means, and sharing it out over images: against loops, and what holds for any numbers."""

import pytest
import reference
import reference_rivals
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick

from coremat.methods.budget import budget, share_out
from coremat.methods.common.defaults import NINTH

sizes_lists = st.lists(st.integers(0, 5) | st.integers(0, 900), max_size=8)


@quick
@given(st.integers(0, 300), sizes_lists, st.integers(0, 3))
def test_shares_are_those_of_the_loops(count, sizes, least):
    assert share_out(count, sizes, least) == reference_rivals.share_out(count, sizes, least)


@quick
@given(st.integers(0, 300), sizes_lists, st.integers(0, 3))
def test_shares_add_up_and_stay_within_their_bounds(count, sizes, least):
    shares = share_out(count, sizes, least)
    lowest = [min(least, size) for size in sizes]
    assert sum(shares) == min(count, sum(sizes))
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    enough = count >= sum(lowest)
    assert all(share >= low if enough else share <= low for share, low in zip(shares, lowest, strict=True))


@quick
@given(st.integers(0, 300), sizes_lists)
def test_no_share_is_a_whole_token_away_from_its_proportion(count, sizes):
    total = sum(sizes)
    for share, size in zip(share_out(count, sizes), sizes, strict=True):
        assert abs(share * total - min(count, total) * size) < max(1, total)


@pytest.mark.parametrize(
    ("count", "sizes", "least", "wanted"),
    [
        (64, [576], 0, [64]),
        (9, [576], 1, [9]),
        (5, [4, 4, 4], 0, [2, 2, 1]),  # two thirds are left to each: the first two get them
        (10, [900, 100], 1, [9, 1]),
        (10, [990, 5, 5], 0, [10, 0, 0]),
        (10, [990, 5, 5], 1, [8, 1, 1]),
        (2, [900, 1, 1], 1, [1, 1, 0]),  # too few for one each
        (9, [4, 4], 0, [4, 4]),
        (3, [], 1, []),
        (0, [3, 4], 1, [0, 0]),
        (5, [100, 0, 1], 2, [4, 0, 1]),  # what is smaller than the least is given whole
    ],
)
def test_shares_in_whole_tokens(count, sizes, least, wanted):
    assert share_out(count, sizes, least) == wanted


@pytest.mark.parametrize(("tokens", "seen", "kept"), [(64, 576, 64), (64, 16, 16), (0.25, 576, 144), (0.01, 16, 1)])
def test_budget(tokens, seen, kept):
    assert budget(tokens, seen) == kept


@pytest.mark.parametrize("share", [0.05, 0.29, 0.3, 0.35, 0.57, 1.0])
def test_a_share_of_the_tokens_is_exact(share):
    assert all(budget(share, seen) == max(1, reference.floor_of(share, seen)) for seen in range(1, 700))


def test_the_default_of_a_ninth_is_the_papers_64_of_576():
    assert budget(NINTH, 576) == 64
