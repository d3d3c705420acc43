"""What FFNs and Linears that choose anew for every token have in common."""

from typing import Any

import torch
from torch.nn import functional

from coremat.ffn.rows import reads_rows, summed_rows
from coremat.timers import Stopwatch


def strongest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest scores of each row, ties to the lower index, in no order. scores: [..., F], none below 0,
    told apart in float32. Returns int64 [..., count]."""
    size = scores.shape[-1]
    # Numbers from 0 are in the order of their bits; below these the index, so that topk has no ties to break.
    bits = scores.float().contiguous().view(torch.int32).long()
    key = bits * size + torch.arange(size - 1, -1, -1, device=scores.device)
    return key.topk(count, dim=-1, sorted=False).indices


def chosen_inputs(x: torch.Tensor, index: torch.Tensor, linear: Any) -> torch.Tensor:
    """`linear` of the inputs `index` [N, k] alone, of which x [N, k] has the values. Returns [N, outputs].

    Their columns are read where they lie, if they lie one by one and all tokens together want fewer than there are;
    else the whole matrix is, and the other inputs are zeros.
    """
    columns = linear.weight.T
    if index.numel() < len(columns) and reads_rows(columns):
        out = summed_rows(x, index, columns)
        return out if linear.bias is None else out + linear.bias.to(out.dtype)
    whole = x.new_zeros(len(x), len(columns)).scatter(1, index, x)
    return functional.linear(whole, linear.weight, linear.bias)


class PerTokenFFN:
    """One layer's FFN (`coremat.ffn.SparseFFN`) that takes nothing from the prompt and holds nothing."""

    def __init__(self, mlp: Any, count: int) -> None:
        self.mlp, self.count = mlp, count

    def prepare(self, core: torch.Tensor, watch: Stopwatch) -> None:
        """A token's neurons are known when it comes."""

    def materialise(self) -> None:
        """There is nothing to copy."""

    @property
    def bytes(self) -> int:
        return 0
