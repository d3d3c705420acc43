"""Average pooling over the grid of an image: fewer tokens, each the mean of its surroundings."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import ClassVar

import torch
from torch.nn import functional

from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.budget import share_out
from coremat.methods.common.defaults import NINTH
from coremat.methods.common.grid import centres, elongation
from coremat.methods.options import FixedBudget, Positions
from coremat.methods.views import ImageView

MOST = 2  # cells more than twice as long as wide are taken only where there are no others


@dataclass(frozen=True, kw_only=True)
class AveragePooling(Method):
    """tokens: a count or a share, of which the largest grid of cells that is not above it is used; positions: of the
    kept tokens."""

    name: ClassVar[str] = "average-pooling"
    summary: ClassVar[str] = "image tokens averaged over cells of the grid"
    paper: ClassVar[str] = "a baseline without a paper"

    tokens: FixedBudget = NINTH
    positions: Positions = "auto"

    def stages(self, layers: int) -> Sequence[Stage]:
        return (Stage(0, self.tokens, self.positions),)

    def before_decoder(self, image: ImageView, keep: int | None) -> Reduction:
        return average_pooling(image.features, image.grids, keep or 0)


def average_pooling(embeddings: torch.Tensor, grids: Sequence[tuple[int, int]], count: int) -> Reduction:
    """At most `count` vectors, each the mean of a cell of the image's rectangles.

    embeddings: [N, H]; grids: the rectangles (rows, columns) that they form, one after the other, row by row. Each has
    its share of the count by size; one whose share is none loses its tokens.
    """
    sizes = [prod(grid) for grid in grids]
    images, shares = embeddings.split(sizes), share_out(count, sizes)
    parts = [_pool(*part) for part in zip(images, grids, shares, strict=True)]
    return Reduction(torch.cat([keep for keep, _ in parts]), torch.cat([own for _, own in parts]))


def _pool(embeddings: torch.Tensor, grid: tuple[int, int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One rectangle: places, bool [n], and features [n, H], a vector per cell of the largest grid with at most `count`
    cells, at the middle of its cell.

    Where sizes do not divide, neighbouring cells share a row or a column of places (adaptive pooling). A count that no
    such grid has (61 of 24 x 24, say) is not used up.
    """
    if not count:
        return torch.zeros(len(embeddings), dtype=torch.bool, device=embeddings.device), embeddings
    rows, columns = pooled_grid(grid, count)
    image = embeddings.float().T.reshape(1, -1, *grid)
    pooled = functional.adaptive_avg_pool2d(image, (rows, columns))[0].flatten(1).T
    keep = torch.zeros(grid, dtype=torch.bool, device=embeddings.device)
    keep[torch.tensor(centres(grid[0], rows))[:, None], torch.tensor(centres(grid[1], columns))] = True
    merged_features = embeddings.clone()
    merged_features[keep.flatten()] = pooled.to(merged_features.dtype)
    return keep.flatten(), merged_features


def pooled_grid(grid: tuple[int, int], cells: int) -> tuple[int, int]:
    """The rows and columns with the most cells, at most `cells`; the squarest cells among as many."""

    def merit(size: tuple[int, int]) -> tuple[bool, int, Fraction]:
        longer = elongation(Fraction(grid[0], size[0]), Fraction(grid[1], size[1]))
        return longer > MOST, -size[0] * size[1], longer

    return min(((rows, min(grid[1], cells // rows)) for rows in range(1, min(grid[0], cells) + 1)), key=merit)
