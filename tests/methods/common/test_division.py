"""Shares layer by layer: the sum is what was asked for, and no other division on a grid costs less."""

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coremat.errors import ConfigError
from coremat.methods.common.division import by_costs, first_whole, lower_hull

GRID = [Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)]
QUARTERS = [*GRID, Fraction(1)]
costs = st.lists(st.integers(0, 64).map(float), min_size=3, max_size=3)  # of which slopes are exact


def hull_at(own: list[float], share: Fraction) -> float:
    """The largest convex function below a layer's points, by its definition: the lowest chord between any two."""
    points = [*zip(QUARTERS, [*own, 0.0], strict=True)]
    chords = [
        left[1] + (right[1] - left[1]) * float((share - left[0]) / (right[0] - left[0]))
        for left in points
        for right in points
        if left[0] <= share <= right[0] and left[0] < right[0]
    ]
    return min(chords)


@given(st.lists(costs, min_size=1, max_size=4), st.data())
def test_no_division_on_the_grid_costs_less(layers: list[list[float]], data: st.DataObject) -> None:
    count, quarters = len(layers), data.draw(st.integers(len(layers), 4 * len(layers)))
    mean = Fraction(quarters, 4 * count)
    if mean < 2 * GRID[0]:  # shares may then go below the grid
        return
    found = by_costs(layers, GRID, mean)
    assert sum(found) == mean * count
    assert all(GRID[0] <= share <= 1 for share in found)
    paid = sum(hull_at(own, share) for own, share in zip(layers, found, strict=True))
    best = min(
        sum(hull_at(own, share) for own, share in zip(layers, division, strict=True))
        for division in product(QUARTERS, repeat=count)
        if sum(division) == mean * count
    )
    assert paid == pytest.approx(best, abs=1e-9)


@given(st.lists(costs, min_size=1, max_size=5), st.fractions(Fraction(1, 100), 1, max_denominator=100))
def test_any_mean_is_met_exactly(layers: list[list[float]], mean: Fraction) -> None:
    found = by_costs(layers, GRID, mean)
    assert sum(found) == mean * len(layers)
    assert all(min(GRID[0], mean / 2) <= share <= 1 for share in found)


def test_the_costly_layer_is_whole_and_layers_alike_stay_alike() -> None:
    found = by_costs([[8.0, 4.0, 2.0], [0.25, 0.125, 0.0625], [0.25, 0.125, 0.0625]], GRID, Fraction(1, 2))
    assert found == [1, Fraction(1, 4), Fraction(1, 4)]
    assert by_costs([[1.0, 0.5, 0.25]] * 3, GRID, Fraction(2, 5)) == [Fraction(2, 5)] * 3


def test_below_the_grid_shares_go_down_to_half_of_the_mean() -> None:
    assert by_costs([[8.0, 4.0, 2.0], [1.0, 0.5, 0.25]], GRID, Fraction(1, 4)) == [Fraction(3, 8), Fraction(1, 8)]


def test_a_cost_of_a_whole_layer_counts_where_it_is_given() -> None:
    grid, mean = [Fraction(1, 2), Fraction(1)], Fraction(3, 4)
    assert by_costs([[4.0, 3.5], [3.0, 0.0]], grid, mean) == [Fraction(1, 2), 1]
    assert by_costs([[4.0], [3.0]], grid[:1], mean) == [1, Fraction(1, 2)]


def test_corners_of_a_hull() -> None:
    points = [(Fraction(1), 4.0), (Fraction(2), 3.5), (Fraction(3), 1.0), (Fraction(4), 0.5), (Fraction(5), 0.0)]
    assert lower_hull(points) == [points[0], points[2], points[4]]


@pytest.mark.parametrize(("mean", "layers"), [(Fraction(2, 5), 30), (Fraction(1, 5), 6), (Fraction(1), 1)])
def test_the_first_is_whole_and_the_others_alike(mean: Fraction, layers: int) -> None:
    first, *others = first_whole(mean, layers)
    assert first == 1
    assert first + sum(others) == mean * layers
    assert len(others) == layers - 1
    assert len(set(others)) <= 1


@pytest.mark.parametrize(("mean", "layers"), [(Fraction(1, 5), 5), (Fraction(1, 10), 6), (Fraction(1, 2), 1)])
def test_a_mean_that_the_first_takes_up_is_refused(mean: Fraction, layers: int) -> None:
    with pytest.raises(ConfigError, match=rf"{float(mean)} in the mean of {layers} layers .*; accepted: above "):
        first_whole(mean, layers)
