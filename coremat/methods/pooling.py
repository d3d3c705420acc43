"""Average pooling over the grid of an image: fewer tokens, each the mean of its surroundings."""

from fractions import Fraction

import torch
from torch.nn import functional

from coremat.core_tokens import budget as places_of
from coremat.methods.reduction import Reduction
from coremat.methods.uniform import centres, elongation

MOST = 2  # cells more than twice as long as wide are taken only where there are no others


def average_pooling(embeddings: torch.Tensor, grid: tuple[int, int], budget: int | float) -> Reduction:
    """One vector per cell of the largest grid with at most `budget` cells, at the central place of its cell.

    embeddings: [N, H], row by row of `grid`. Where sizes do not divide, neighbouring cells share a row or a column of
    places (adaptive pooling). A budget that no such grid has (61 of 24 x 24, say) is not used up.
    """
    rows, columns = pooled_grid(grid, places_of(budget, len(embeddings)))
    image = embeddings.float().T.reshape(1, -1, *grid)
    pooled = functional.adaptive_avg_pool2d(image, (rows, columns))[0].flatten(1).T
    keep = torch.zeros(grid, dtype=torch.bool, device=embeddings.device)
    keep[torch.tensor(centres(grid[0], rows))[:, None], torch.tensor(centres(grid[1], columns))] = True
    held = embeddings.clone()
    held[keep.flatten()] = pooled.to(held.dtype)
    return Reduction(keep.flatten(), held)


def pooled_grid(grid: tuple[int, int], cells: int) -> tuple[int, int]:
    """The rows and columns with the most cells, at most `cells`; the squarest cells among as many."""

    def merit(size: tuple[int, int]) -> tuple[bool, int, Fraction]:
        longer = elongation(Fraction(grid[0], size[0]), Fraction(grid[1], size[1]))
        return longer > MOST, -size[0] * size[1], longer

    return min(((rows, min(grid[1], cells // rows)) for rows in range(1, min(grid[0], cells) + 1)), key=merit)
