"""Downsampling: the picture itself is made smaller, so that the vision tower, too, sees less and makes fewer tokens.

The baseline of Liao et al., "Are We Using the Right Benchmark: An Evaluation Framework for Visual Token Compression
Methods" (VTC-Bench), ACL 2026 (arXiv 2510.07143), which finds it ahead of many methods that choose tokens.

Departures: the authors resize the file before the processor reads it; here it is what the processor makes of it, so
that tiles and frames stay as many as they were. Where positions have several axes, a token stands where its place is in
the whole picture, not at the rows and columns of the smaller one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import ClassVar

from coremat.methods.base import Method, Stage
from coremat.methods.common.defaults import NINTH
from coremat.methods.common.grid import elongation
from coremat.methods.options import FixedBudget, Positions

Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Downsample(Method):
    """tokens: a count or a share, of which the largest picture in the same shape that is not above it is used (64 of
    24 x 24 are 8 x 8, and 63 are 7 x 7); positions: of the kept tokens."""

    name: ClassVar[str] = "downsample"
    summary: ClassVar[str] = "the picture made smaller before the vision tower"
    paper: ClassVar[str] = "Liao et al. (VTC-Bench), ACL 2026 (arXiv 2510.07143)"
    departures: ClassVar[str] = "resized behind the processor; several-axis positions are those of the whole picture"
    needs: ClassVar[frozenset[str]] = frozenset({"resizable tower"})

    tokens: FixedBudget = NINTH
    positions: Positions = "auto"

    def stages(self, layers: int) -> Sequence[Stage]:
        return (Stage(0, self.tokens, self.positions),)

    def smaller_grids(self, grid: Grid) -> Sequence[Grid]:
        return same_shape(grid)


@cache
def same_shape(grid: Grid) -> tuple[Grid, ...]:
    """The grids in the shape of this one, itself first, then by fewer and fewer places, down to one: for every number
    of rows the columns next to the shape, fewer and more, and for every number of columns the rows. Of several with as
    many places the one nearest to the shape."""
    rows, columns = grid
    found = {(own, other) for own in range(1, rows + 1) for other in _next_to(own * columns, rows)}
    found |= {(other, own) for own in range(1, columns + 1) for other in _next_to(own * rows, columns)}
    best: dict[int, Grid] = {}
    for size in sorted(found, key=lambda size: _stretch(grid, size), reverse=True):
        best[size[0] * size[1]] = size
    return tuple(best[places] for places in sorted(best, reverse=True))


def _next_to(product: int, side: int) -> tuple[int, int]:
    """product / side rounded down, at least 1, and up."""
    return max(1, product // side), -(-product // side)


def _stretch(grid: Grid, size: Grid) -> tuple[Fraction, int]:
    """How far a size is from the shape of the grid, 1: not at all; of two as far, the one with fewer rows is nearer."""
    return elongation(Fraction(grid[0], size[0]), Fraction(grid[1], size[1])), size[0]
