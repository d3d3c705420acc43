"""Votes for core neurons (paper eq. 2 and 4): how many tokens have a neuron among their own core, counted the fastest
way.

All ways count alike, to the last vote: half-precision activations tie at nearly every token's cut, and ties go to the
lower neuron index.
"""

import numpy
import torch

from coremat.ffn import kernels
from coremat.methods.budget import as_fraction, ceilings
from coremat.methods.corematching.bits import activated, bits, count_true

BLOCK = 255  # rows that a counter of 8 bits can hold
NARROW = 2048  # neurons


def token_core_neurons(activations: torch.Tensor, alpha: float) -> torch.Tensor:
    """C_alpha(x_i): the ceil(alpha * |Gamma(x_i)|) most active of each token's positive neurons (eq. 2).

    activations: [..., F]. Returns bool [..., F].
    """
    table = ceilings(activations.shape[-1], alpha).to(activations.device)
    wanted = table[count_true(activated(activations))][..., None]
    most = int(as_fraction(alpha) * activations.shape[-1]) + 1
    # The wanted-th largest value is the same whichever way topk orders equal ones.
    largest = activations.topk(min(most, activations.shape[-1]), dim=-1).values
    cut = largest.gather(-1, (wanted - 1).clamp(min=0))
    above = (activations > cut) & (wanted > 0)
    equal = (activations == cut) & (wanted > 0)
    room = wanted - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


def votes(activations: torch.Tensor, alpha: float, voters: torch.Tensor) -> torch.Tensor:
    """f(n): how many voting tokens have neuron n among their own core (eq. 4).

    activations: [B, T, F]; voters: bool [B, T], False for padding and for whoever has no say. Returns int64 [B, F].
    """
    if activations.device.type == "cpu":
        # Rows are left out by numpy, in this thread: torch would wake all others for each of these small copies.
        pairs = zip(bits(activations).numpy(), voters.numpy(), strict=True)
        return torch.from_numpy(numpy.stack([_by_bits(rows if v.all() else rows[v], alpha) for rows, v in pairs]))
    if kernels.available(activations.device):
        from coremat.methods.corematching.votes_kernel import count_votes

        return count_votes(activations, alpha, voters)
    return (token_core_neurons(activations, alpha) & voters[..., None]).sum(1)


def _by_bits(rows: numpy.ndarray, alpha: float) -> numpy.ndarray:
    """One sequence: the bits of its activations [T, F]. Returns int64 [F]."""
    wanted = ceilings(rows.shape[1], alpha).numpy()
    count = _of_narrow_rows if rows.shape[1] < NARROW else _of_wide_rows
    total = numpy.zeros(rows.shape[1], numpy.int64)
    for start in range(0, len(rows), BLOCK):
        total += count(rows[start : start + BLOCK], wanted)
    return total


def _of_narrow_rows(rows: numpy.ndarray, wanted: numpy.ndarray) -> numpy.ndarray:
    """All rows at once: a sort of a short row costs less than a call. Sums are kept small, which is faster."""
    counts = wanted[(rows > 0).view(numpy.uint8).sum(1, dtype=numpy.uint16)][:, None]
    cuts = numpy.take_along_axis(numpy.sort(rows, axis=1), rows.shape[1] - numpy.maximum(counts, 1), axis=1)
    chosen = (rows >= cuts) & (counts > 0)
    surplus = chosen.view(numpy.uint8).sum(1, dtype=numpy.uint16) - counts[:, 0]
    for row in numpy.flatnonzero(surplus):
        chosen[row, numpy.flatnonzero(rows[row] == cuts[row])[-surplus[row] :]] = False
    return chosen.view(numpy.uint8).sum(0, dtype=numpy.uint8)


def _of_wide_rows(rows: numpy.ndarray, wanted: numpy.ndarray) -> numpy.ndarray:
    """Row by row: while one is in the processor's cache, everything is done with it, and half of it is never sorted."""
    tally = numpy.zeros(rows.shape[1], numpy.uint8)
    for row in rows:
        count = wanted[numpy.count_nonzero(row > 0)]
        if count:
            _vote(row, count, tally)
    return tally


def _vote(row: numpy.ndarray, count: int, tally: numpy.ndarray) -> None:
    """Add one to `tally` for the `count` largest of `row`; of equal ones at the cut, the first."""
    cut = numpy.partition(row, len(row) - count)[-count]
    chosen = row >= cut
    tally += chosen.view(numpy.uint8)
    surplus = numpy.count_nonzero(chosen) - count
    if surplus:
        tally[numpy.flatnonzero(row == cut)[-surplus:]] -= 1
