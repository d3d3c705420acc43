"""Image tokens at even distances, whatever they show: the anchor that a method must beat by more than it costs."""

from fractions import Fraction

import torch

from coremat.core_tokens import budget as places_of


def centres(size: int, count: int) -> list[int]:
    """Where `count` equal parts of 0 .. size - 1 have their middles: `count` different places, ascending."""
    return [(2 * part + 1) * size // (2 * count) for part in range(count)]


def elongation(rows: Fraction, columns: Fraction) -> Fraction:
    """How much longer than wide a cell is, whichever way it lies: at least 1."""
    return max(rows / columns, columns / rows)


def uniform(grid: tuple[int, int] | int, budget: int | float) -> torch.Tensor:
    """Exactly `budget` places of a grid (or of a row of so many) at even distances. Returns bool [N], on the CPU.

    As many rows as make the vertical distance most like the horizontal one (fewer of them, if two are as good), each
    with as many places as the next one, or one more where the budget does not divide. Rows stand in the middle of equal
    parts of the height, and places in the middle of equal parts of their row.
    """
    height, width = (1, grid) if isinstance(grid, int) else grid
    count = places_of(budget, height * width)
    rows = _rows(height, width, count)
    keep = torch.zeros(height, width, dtype=torch.bool)
    for number, row in enumerate(centres(height, rows)):
        own = (number + 1) * count // rows - number * count // rows
        keep[row, centres(width, own)] = True
    return keep.flatten()


def _rows(height: int, width: int, count: int) -> int:
    possible = range(-(-count // width), min(height, count) + 1)
    return min(possible, key=lambda rows: elongation(Fraction(height, rows), Fraction(width * rows, count)))
