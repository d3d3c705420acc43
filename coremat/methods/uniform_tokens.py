"""Image tokens at even distances, whatever they show: the anchor that a method must beat by more than it costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import ClassVar

import torch

from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.budget import share_out
from coremat.methods.common.defaults import NINTH
from coremat.methods.common.grid import centres, elongation
from coremat.methods.options import FixedBudget, Positions
from coremat.methods.views import ImageView


@dataclass(frozen=True, kw_only=True)
class UniformTokens(Method):
    """tokens: a count or a share; positions: of the kept tokens."""

    name: ClassVar[str] = "uniform-tokens"
    summary: ClassVar[str] = "image tokens at even distances over the grid"
    paper: ClassVar[str] = "a baseline without a paper"

    tokens: FixedBudget = NINTH
    positions: Positions = "auto"

    def stages(self, layers: int) -> Sequence[Stage]:
        return (Stage(0, self.tokens, self.positions),)

    def before_decoder(self, image: ImageView, keep: int | None) -> Reduction:
        return Reduction(uniform(image.grids, keep or 0).to(image.features.device))


def uniform(grids: Sequence[tuple[int, int]], count: int) -> torch.Tensor:
    """`count` tokens of an image at even distances, or all if it has fewer. Returns bool [N], on the CPU.

    grids: the rectangles (rows, columns) that its N tokens form, one after the other, row by row. Each has its share of
    the count by size.
    """
    shares = share_out(count, [prod(grid) for grid in grids])
    return torch.cat([_spread(*grid, share) for grid, share in zip(grids, shares, strict=True)])


def _spread(height: int, width: int, count: int) -> torch.Tensor:
    """One rectangle, bool [height * width].

    As many rows as make the vertical distance most like the horizontal one (fewer of them, if two are as good), each
    with as many places as the next one, or one more where the count does not divide. Rows stand in the middle of equal
    parts of the height, and places in the middle of equal parts of their row.
    """
    if not count:
        return torch.zeros(height * width, dtype=torch.bool)
    rows = _rows(height, width, count)
    keep = torch.zeros(height, width, dtype=torch.bool)
    for number, row in enumerate(centres(height, rows)):
        own = (number + 1) * count // rows - number * count // rows
        keep[row, centres(width, own)] = True
    return keep.flatten()


def _rows(height: int, width: int, count: int) -> int:
    possible = range(-(-count // width), min(height, count) + 1)
    return min(possible, key=lambda rows: elongation(Fraction(height, rows), Fraction(width * rows, count)))
