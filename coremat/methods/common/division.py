"""Shares of neurons layer by layer, of a given mean: one layer whole, or by what pruning each layer costs.

Exact fractions in and out, so that shares add up to what was asked for.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import groupby, pairwise

from coremat.errors import ConfigError

Point = tuple[Fraction, float]  # a share, and what a layer costs with it
WHOLE = Fraction(1)


def first_whole(mean: Fraction, layers: int) -> list[Fraction]:
    """Layer 0 whole, the others alike. ConfigError for a mean that this takes up or exceeds."""
    left = mean * layers - 1
    if mean < 1 and left <= 0:
        raise ConfigError(
            f"a share of {float(mean):g} in the mean of {layers} layers leaves nothing beside a whole first layer; "
            f"accepted: above {float(Fraction(1, layers)):.4g}."
        )
    return [WHOLE, *(left / (layers - 1) for _ in range(1, layers))]


def by_costs(costs: Sequence[Sequence[float]], grid: Sequence[Fraction], mean: Fraction) -> list[Fraction]:
    """The shares of this mean that cost the least, if what layers cost adds up.

    costs: [L][K], of pruning one layer to each share of `grid` [K] (ascending); one at share 1 costs nothing, if the
    grid does not end there. In between a layer's cost is the largest convex function below these points, straight from
    point to point, so that giving to the steepest piece first is the best there is; pieces of one slope grow alike. No
    share is below the smallest of the grid, or, where that is more than half of the mean, below half of the mean, to
    which the first piece goes on straight.
    """
    least = min(grid[0], mean / 2)
    shares, left = [least] * len(costs), (mean - least) * len(costs)
    for _, alike in groupby(sorted(_pieces(costs, grid, least)), key=lambda piece: piece[0]):
        pieces = list(alike)
        part = min(WHOLE, left / sum(length for _, _, length in pieces))
        for _, layer, length in pieces:
            shares[layer] += part * length
            left -= part * length
    return shares


def _pieces(
    costs: Sequence[Sequence[float]], grid: Sequence[Fraction], least: Fraction
) -> list[tuple[float, int, Fraction]]:
    """Slope, layer and length of each straight piece between `least` and 1."""
    found = []
    for layer, own in enumerate(costs):
        end = [(WHOLE, 0.0)] if grid[-1] < 1 else []
        corners = lower_hull([*zip(grid, own, strict=True), *end])
        for number, (left, right) in enumerate(pairwise(corners)):
            found.append((_slope(left, right), layer, right[0] - (left[0] if number else least)))
    return found


def lower_hull(points: Sequence[Point]) -> list[Point]:
    """The corners of the largest convex function below points that ascend by their shares."""
    hull: list[Point] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(left: Point, right: Point) -> float:
    return (right[1] - left[1]) / float(right[0] - left[0])
