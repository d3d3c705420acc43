"""A uniform choice against loops, and on grids where it is a plain stride."""

import pytest
import reference_rivals
from hypothesis import given
from hypothesis import strategies as st
from image_views import kept
from strategies import grids, quick

from coremat.methods.common.grid import centres
from coremat.methods.uniform_tokens import uniform


@quick
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_places_are_those_of_the_loops_and_exactly_the_budget(height, width, data):
    budget = data.draw(st.integers(1, height * width))
    keep = uniform([(height, width)], budget)
    assert kept(keep) == reference_rivals.spread(height, width, budget)
    assert keep.sum() == budget


@quick
@given(grids, st.integers(0, 200))
def test_rectangles_have_the_places_of_the_loops(grids, count):
    keep = uniform(grids, count)
    assert kept(keep) == reference_rivals.uniform(grids, count)
    assert keep.sum() == min(count, len(keep))


def test_a_view_and_tiles_have_places_in_proportion():
    """As LLaVA-NeXT has a wide picture: a whole view and half a row of tiles more, each with a newline a row."""
    view, tiles = uniform([(24, 24), (24, 49)], 195).split([576, 24 * 49])
    assert (view.sum(), tiles.sum()) == (64, 131)
    assert kept(view) == kept(uniform([(24, 24)], 64))
    assert kept(tiles) == kept(uniform([(24, 49)], 131))


def test_a_newline_behind_a_view_is_no_row_of_it():
    keep = uniform([(3, 3), (1, 1)], 1)
    assert kept(keep) == [4]


def test_a_ninth_of_a_square_is_every_third_row_and_column():
    keep = uniform([(24, 24)], 64).view(24, 24)
    assert kept(keep.any(1)) == kept(keep.any(0)) == [1, 4, 7, 10, 13, 16, 19, 22]
    assert keep[1::3, 1::3].all()


def test_one_place_is_the_middle():
    assert kept(uniform([(5, 3)], 1)) == [2 * 3 + 1]


def test_a_place_too_many_goes_to_one_row():
    assert sorted(uniform([(24, 24)], 65).view(24, 24).sum(1).tolist())[-8:] == [8] * 7 + [9]


def test_a_long_image_has_more_columns_than_rows():
    keep = uniform([(4, 16)], 16).view(4, 16)
    assert (keep.any(1).sum(), keep.any(0).sum()) == (2, 8)


def test_a_row_of_tokens():
    assert kept(uniform([(1, 12)], 4)) == [1, 4, 7, 10]
    assert kept(uniform([(1, 12)], 3)) == [2, 6, 10]


@pytest.mark.parametrize("size", [1, 2, 7, 24])
def test_centres_are_different_places(size):
    for count in range(size + 1):
        found = centres(size, count)
        assert found == sorted(set(found))
        assert len(found) == count
