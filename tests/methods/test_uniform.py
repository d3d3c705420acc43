"""A uniform choice against loops, and on grids where it is a plain stride."""

import pytest
import reference_rivals
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick
from views import kept

from coremat.methods.uniform import centres, uniform


@quick
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_places_are_those_of_the_loops_and_exactly_the_budget(height, width, data):
    budget = data.draw(st.integers(1, height * width))
    keep = uniform((height, width), budget)
    assert kept(keep) == reference_rivals.uniform(height, width, budget)
    assert keep.sum() == budget


def test_a_ninth_of_a_square_is_every_third_row_and_column():
    keep = uniform((24, 24), 64).view(24, 24)
    assert kept(keep.any(1)) == kept(keep.any(0)) == [1, 4, 7, 10, 13, 16, 19, 22]
    assert keep[1::3, 1::3].all()


def test_one_place_is_the_middle():
    assert kept(uniform((5, 3), 1)) == [2 * 3 + 1]


def test_a_place_too_many_goes_to_one_row():
    assert sorted(uniform((24, 24), 65).view(24, 24).sum(1).tolist())[-8:] == [8] * 7 + [9]


def test_a_long_image_has_more_columns_than_rows():
    keep = uniform((4, 16), 16).view(4, 16)
    assert (keep.any(1).sum(), keep.any(0).sum()) == (2, 8)


def test_a_row_of_tokens_needs_no_grid():
    assert kept(uniform(12, 4)) == [1, 4, 7, 10]
    assert kept(uniform(12, 0.25)) == [2, 6, 10]


@pytest.mark.parametrize("size", [1, 2, 7, 24])
def test_centres_are_different_places(size):
    for count in range(size + 1):
        found = centres(size, count)
        assert found == sorted(set(found))
        assert len(found) == count
