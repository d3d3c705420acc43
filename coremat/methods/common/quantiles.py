"""Thresholds on magnitudes for every share that may be kept, in thousandths, and what they leave."""

import torch

STEPS = 1000


def thresholds(magnitudes: torch.Tensor) -> torch.Tensor:
    """Above which a share k / 1000 of the magnitudes lies, for k = 1 to 1000: float32 [1000].

    The threshold is the smallest of the magnitudes that are kept (at least one), and 0 where all are.
    """
    values = magnitudes.flatten().float().sort(descending=True).values
    counts = (torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS * len(values)).round().long().clamp(min=1)
    table = values[(counts - 1).to(values.device)].cpu()
    table[-1] = 0
    return table


def reached(magnitudes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The share of other magnitudes that each threshold keeps: those at least as large. float32 [1000]."""
    values = magnitudes.flatten().float().sort().values
    below = torch.searchsorted(values, table.to(values.device))
    return (1 - below.double() / len(values)).float().cpu()


def at_share(table: torch.Tensor, share: float) -> torch.Tensor:
    """The entry of a table [..., 1000] for a share, to the nearest thousandth and at least one of them."""
    return table[..., max(1, round(share * STEPS)) - 1]


def without_small(x: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """x with zeros where |x| is below the threshold."""
    return x.masked_fill(x.abs() < threshold, 0)
