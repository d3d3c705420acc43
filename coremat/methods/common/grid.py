"""Places and cells of a rectangle at even distances."""

from fractions import Fraction


def centres(size: int, count: int) -> list[int]:
    """Where `count` equal parts of 0 .. size - 1 have their middles: `count` different places, ascending."""
    return [(2 * part + 1) * size // (2 * count) for part in range(count)]


def elongation(rows: Fraction, columns: Fraction) -> Fraction:
    """How much longer than wide a cell is, whichever way it lies: at least 1."""
    return max(rows / columns, columns / rows)
