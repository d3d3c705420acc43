"""Budgets: what a count or a share means, and how it is shared out over images, or over the rectangles of one image."""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import torch


@cache
def as_fraction(share: float) -> Fraction:
    """The decimal that was written (0.3, not the nearest double), so that ceilings and floors of it are exact."""
    return Fraction(repr(float(share)))


def budget(tokens: int | float, seen: int) -> int:
    """How many of `seen` image tokens a count or a share keeps: at least one, at most all."""
    count = int(as_fraction(tokens) * seen) if isinstance(tokens, float) else tokens
    return min(seen, max(1, count))


@cache
def ceilings(most: int, share: float) -> torch.Tensor:
    """ceil(share * n) for n = 0 .. most, exactly: a float32 product is wrong in hundreds of places."""
    exact = as_fraction(share)
    return torch.tensor([math.ceil(exact * n) for n in range(most + 1)])


def share_out(count: int, sizes: Sequence[int], least: int = 0) -> list[int]:
    """`count` in whole shares in proportion to `sizes`, by largest remainder; ties go to the lower index.

    No share is larger than its size, and they add up to `count`, or to all there is. `least`: what every share gets
    first (or its size, if that is smaller), even if its proportion is less; a count too small for that is shared out
    among these.
    """
    lowest = [min(least, size) for size in sizes]
    count = min(count, sum(sizes))
    if count <= sum(lowest):
        return _in_proportion(count, lowest)
    shares = _in_proportion(count, sizes)
    raised = {index: low for index, low in enumerate(lowest) if shares[index] < low}
    if not raised:
        return shares
    others = [0 if index in raised else size for index, size in enumerate(sizes)]
    rest = share_out(count - sum(raised.values()), others, least)
    return [raised.get(index, share) for index, share in enumerate(rest)]


def _in_proportion(count: int, sizes: Sequence[int]) -> list[int]:
    """count: at most the sum of `sizes`."""
    total = max(1, sum(sizes))
    shares = [count * size // total for size in sizes]
    largest = sorted(range(len(sizes)), key=lambda index: -(count * sizes[index] % total))
    for index in largest[: count - sum(shares)]:
        shares[index] += 1
    return shares
