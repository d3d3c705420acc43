"""Core neurons: which FFN neurons matter for one sentence (paper section 2.1, eq. 2 to 4).

Pure functions on A, the input of `down_proj`: A_i[n] > 0 means that token i activates neuron n. The votes of eq. 4 are
counted in `coremat.votes`.
Ties always go to the lower neuron index, so that every device selects the same set.
"""

import math
from functools import cache

import torch

from coremat.config import as_fraction

BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def core_count(neurons: int, beta: float) -> int:
    """m = floor(beta * F), at least 1: how many neurons of a layer are core (eq. 3)."""
    return max(1, int(as_fraction(beta) * neurons))


@cache
def ceilings(most: int, alpha: float) -> torch.Tensor:
    """ceil(alpha * n) for n = 0 .. most, exactly: a float32 product is wrong in hundreds of places."""
    share = as_fraction(alpha)
    return torch.tensor([math.ceil(share * n) for n in range(most + 1)])


def bits(activations: torch.Tensor) -> torch.Tensor:
    """The same memory as integers: positive numbers keep their order, and many times faster to compare and to sort."""
    return activations.contiguous().view(BITS[activations.dtype])


def activated(activations: torch.Tensor) -> torch.Tensor:
    """Gamma(x_i) as bool [..., F]: which neurons each token activates."""
    return bits(activations) > 0


def count_true(mask: torch.Tensor) -> torch.Tensor:
    """How many of the last dimension are True: int64 [...]. Added up as bytes, a plain sum takes ten times as long."""
    return mask.view(torch.int8).sum(-1, dtype=torch.int32).long()


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


def core_neurons(counts: torch.Tensor, beta: float) -> torch.Tensor:
    """C: the m neurons with the most votes (eq. 3). counts: int64 [B, F]. Returns int64 [B, m], ascending."""
    size = counts.shape[-1]
    # One integer per neuron, votes first and the lower index above: no two are equal, so topk has no ties to break.
    key = counts * size + torch.arange(size - 1, -1, -1, device=counts.device)
    return key.topk(core_count(size, beta), dim=-1).indices.sort(-1).values


def membership(chosen: torch.Tensor, size: int) -> torch.Tensor:
    """bool [B, F] of index lists [B, m]."""
    member = torch.zeros(chosen.shape[0], size, dtype=torch.bool, device=chosen.device)
    return member.scatter_(1, chosen, True)
