"""Which neurons the tokens of a prompt vote for (paper section 2.1, eq. 2 and 4), in one launch.

Nothing is sorted and nothing waits for the device. A positive float keeps its order when its bits are read as an
integer, so each token finds where its votes end by halving the range of integers, at most 15 times in 16 bit.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from coremat.ffn.kernels import OPTIONS
from coremat.methods.budget import ceilings
from coremat.methods.corematching.bits import bits

PER_WARP = 1024  # neurons, 32 to a thread: 16 warps for 11008, which then keep a token in their registers


@triton.jit
def vote(
    activations: tl.tensor,  # integers [B * T, F], the bits of floats
    voters: tl.tensor,  # bool [B * T]
    wanted: tl.tensor,  # int32 [F + 1]: ceil(alpha * n)
    counts: tl.tensor,  # out, zeroed: int32 [B, F]
    T: int,
    F: int,
    INFINITY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One token's core neurons, added to the counts of its sequence. Grid (B * T).

    A token is read once and stays in registers; split over programs it would take a launch per halving, and a prompt
    has tokens enough to fill a card. Integers add up alike in any order, so atomic adds leave the counts exact.
    """
    token = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK)
    heard = tl.load(voters + token).to(tl.int32) * F  # neurons: none of a token that has no say
    value = tl.load(activations + token * F + n, mask=n < heard, other=0)
    value = tl.where(value <= INFINITY, value, 0)  # above it are the bits of NaN
    size = tl.load(wanted + tl.sum((value > 0).to(tl.int32), 0))
    high = tl.max(value, 0)
    low = high * 0 + 1  # of the type that `high` has
    while low < high:  # towards the largest cut that `size` neurons reach
        middle = low + (high - low + 1) // 2
        enough = tl.sum((value >= middle).to(tl.int32), 0) >= size
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    above = value > low
    equal = value == low
    room = size - tl.sum(above.to(tl.int32), 0)
    core = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= room))
    tl.atomic_add(counts + (token // T) * F + n, 1, mask=core, sem="relaxed")


@cache
def _wanted(neurons: int, alpha: float, device: torch.device) -> torch.Tensor:
    """ceil(alpha * n) by n, exactly, sent to the device once."""
    return ceilings(neurons, alpha).to(device, torch.int32)


def block_and_warps(neurons: int) -> tuple[int, int]:
    """The power of two that holds a token, and the warps that share it."""
    block = triton.next_power_of_2(neurons)
    return block, min(max(block // PER_WARP, 4), 32)


def count_votes(activations: torch.Tensor, alpha: float, voters: torch.Tensor) -> torch.Tensor:
    """f(n): how many voting tokens have neuron n among their own core (eq. 4), ties to the lower index.

    activations: float [B, T, F]; voters: bool [B, T]. Returns int64 [B, F]. A NaN is not positive: nobody votes for it,
    and its token votes as if it were not there.
    """
    batch, tokens, neurons = activations.shape
    counts = torch.zeros(batch, neurons, dtype=torch.int32, device=activations.device)
    block, warps = block_and_warps(neurons)
    with torch.cuda.device_of(activations):
        vote[(batch * tokens,)](
            *(bits(activations), voters.contiguous(), _wanted(neurons, alpha, activations.device), counts),
            *(tokens, neurons),
            INFINITY=bits(torch.tensor(torch.inf, dtype=activations.dtype)).item(),
            BLOCK=block,
            num_warps=warps,
            **OPTIONS,
        )
    return counts.long()
