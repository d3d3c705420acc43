"""What FFNs and Linears that choose anew for every token have in common."""

from typing import Any

import torch
from torch.nn import functional

from coremat.errors import UnsupportedError
from coremat.ffn.gathered import streamed
from coremat.ffn.rows import products_pay, reads_rows, row_products, summed_rows
from coremat.timers import Stopwatch


def strongest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest scores of each row, ties to the lower index, in no order. scores: [..., F], told apart in
    float32. Returns int64 [..., count]."""
    size = scores.shape[-1]
    # Floats are in the order of their bits, those below 0 in the reverse one (and -0, which + 0 makes 0, is not below);
    # the index goes behind the bits, so that topk has no ties to break.
    bits = (scores.float() + 0).contiguous().view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    key = ordered * size + torch.arange(size - 1, -1, -1, device=scores.device)
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


def chosen_outputs(x: torch.Tensor, index: torch.Tensor, linear: Any) -> torch.Tensor:
    """What `linear` gives for the outputs `index` [N, k] alone of x [N, inputs]. Returns [N, k].

    Their rows are read where they lie if that is less work than the whole matrix, which is read otherwise.
    """
    if not products_pay(index, linear.weight):
        return linear(x).gather(1, index)
    found = row_products(x, index, linear.weight)
    return found if linear.bias is None else found + linear.bias[index].to(found.dtype)


def gated_neurons(x: torch.Tensor, gates: torch.Tensor, index: torch.Tensor, mlp: Any) -> torch.Tensor:
    """What a gated FFN makes of x [N, H] with the neurons `index` [N, k] alone, whose act(gate x) is `gates` [N, k].
    Returns [N, H]."""
    return chosen_inputs(gates * chosen_outputs(x, index, mlp.up_proj), index, mlp.down_proj)


# --- as many as it happens --------------------------------------------------------------------------------------------


def nonzero_index(values: torch.Tensor) -> torch.Tensor | None:
    """Where each row of `values` [N, F] is not zero: int64 [N, k], for the most of any row, at least 1. Rows that have
    fewer are filled up with other places, where they are zero. None if N k is no less than F, and on any device but a
    CPU: there the number would have to be waited for."""
    if values.device.type != "cpu":
        return None
    there = values != 0
    counts = there.sum(1)
    longest = max(1, int(counts.max()))
    if len(values) * longest >= values.shape[1]:
        return None
    if int(counts.min()) == longest:  # as of a single row, unless it is all zeros
        return there.nonzero()[:, 1].view(len(values), longest)
    return there.byte().sort(dim=1, descending=True, stable=True).indices[:, :longest]


def nonzero_inputs(x: torch.Tensor, linear: Any) -> torch.Tensor:
    """`linear` of x [N, inputs]; columns of inputs that are zero are not read where `nonzero_index` lists the others.
    Returns [N, outputs]."""
    index = nonzero_index(x)
    if index is None:
        return functional.linear(x, linear.weight, linear.bias)
    return chosen_inputs(x.gather(1, index), index, linear)


def nonzero_gates(x: torch.Tensor, gates: torch.Tensor, mlp: Any) -> torch.Tensor:
    """What a gated FFN makes of x [N, H], where act(gate x) is `gates` [N, F]; of neurons whose gate is zero nothing
    else is read where `nonzero_index` lists the others. Returns [N, H]."""
    index = nonzero_index(gates)
    if index is None:
        return mlp.down_proj(gates * mlp.up_proj(x))
    return gated_neurons(x, gates.gather(1, index), index, mlp)


# --- FFNs -------------------------------------------------------------------------------------------------------------


def check_resident(mlp: Any, name: str) -> None:
    """UnsupportedError where the weights of this FFN are not on its device while decoding; name: of the method."""
    if streamed(mlp):
        raise UnsupportedError(f"FFN weights are offloaded; accepted by {name}: weights that stay on their device.")


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
