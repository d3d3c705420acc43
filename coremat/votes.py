"""Votes for core neurons (paper eq. 4): how many tokens have a neuron among their own core, counted the fastest way.

All ways count alike, to the last vote: half-precision activations tie at nearly every token's cut, and ties go to the
lower neuron index.
"""

import numpy
import torch

from coremat import kernels
from coremat.core_neurons import bits, ceilings, token_core_neurons

BLOCK = 255  # rows that a counter of 8 bits can hold


def votes(activations: torch.Tensor, alpha: float, voters: torch.Tensor) -> torch.Tensor:
    """f(n): how many voting tokens have neuron n among their own core (eq. 4).

    activations: [B, T, F]; voters: bool [B, T], False for padding and for whoever has no say. Returns int64 [B, F].
    """
    if activations.device.type == "cpu":
        return torch.stack(
            [_by_partition(a if v.all() else a[v], alpha) for a, v in zip(activations, voters, strict=True)]
        )
    if kernels.available(activations.device):
        from coremat.kernels.voting import count_votes

        return count_votes(activations, alpha, voters)
    return (token_core_neurons(activations, alpha) & voters[..., None]).sum(1)


def _by_partition(activations: torch.Tensor, alpha: float) -> torch.Tensor:
    """One sequence, [T, F], token by token: while its row is in the processor's cache, everything is done with it."""
    rows = bits(activations).numpy()
    wanted = ceilings(rows.shape[1], alpha).numpy()
    total = numpy.zeros(rows.shape[1], numpy.int64)
    for start in range(0, len(rows), BLOCK):
        block = numpy.zeros(rows.shape[1], numpy.uint8)
        for row in rows[start : start + BLOCK]:
            count = wanted[numpy.count_nonzero(row > 0)]
            if count:
                _vote(row, count, block)
        total += block
    return torch.from_numpy(total)


def _vote(row: numpy.ndarray, count: int, tally: numpy.ndarray) -> None:
    """Add one to `tally` for the `count` largest of `row`; of equal ones at the cut, the first."""
    cut = numpy.partition(row, len(row) - count)[-count]
    chosen = row >= cut
    tally += chosen.view(numpy.uint8)
    surplus = numpy.count_nonzero(chosen) - count
    if surplus:
        tally[numpy.flatnonzero(row == cut)[-surplus:]] -= 1
