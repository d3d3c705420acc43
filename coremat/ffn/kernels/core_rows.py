"""One token through the core neurons of a gated FFN without a copy of their rows, as an operator of torch.

    y = down[:, C] (act(gate[C] x) * (up[C] x)),     a set C per sequence

An opaque operator runs eagerly, in a compiled step and inside a captured graph, interpreted kernels or not. How the
work is cut depends on shapes alone and is worked out here: nothing is tuned by running it, so nothing changes from one
run to the next. This module can be imported without triton. Two more operators are parts of it for FFNs and Linears
that choose token by token: `sum_of_rows` and `products_with_rows`.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import FastGELUActivation, GELUActivation, GELUTanh, NewGELUActivation, SiLUActivation

from coremat.errors import UnsupportedError
from coremat.ffn.kernels import OPTIONS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Weights of one matrix that a program of gate_up_rows asks for before it waits. Of 4 warps, eight such programs fit on
# a multiprocessor of an H200: 64 KB of 16 bit under way, where its latency times its bandwidth is 26 KB.
TILE = 2048
FILLED = 2000  # programs that fill such a card twice over; with fewer, each takes one row, for a shorter tail

DOWN_ROWS, DOWN_COLUMNS = 16, 256  # a tile of `down`: eight programs to a multiprocessor here too
DOWN_PROGRAMS = 512  # a single wave, and partial sums of about a hundredth of the bytes of the weights
MOST_SHARES = 64  # as many as one program of down_reduce holds
REDUCE_COLUMNS = 128

_ACTIVATION_NAMES: dict[Any, str] = {
    nn.SiLU: "silu",
    SiLUActivation: "silu",
    F.silu: "silu",
    GELUActivation: "gelu",
    F.gelu: "gelu",
    GELUTanh: "gelu_pytorch_tanh",
    NewGELUActivation: "gelu_pytorch_tanh",
    FastGELUActivation: "gelu_pytorch_tanh",
    nn.ReLU: "relu",
    F.relu: "relu",
}
ACTIVATIONS = tuple(dict.fromkeys(_ACTIVATION_NAMES.values()))


def activation_name(act_fn: Any) -> str | None:
    """Which of ACTIVATIONS this module or function computes; None if none of them."""
    if type(act_fn) is nn.GELU:
        return "gelu" if act_fn.approximate == "none" else "gelu_pytorch_tanh"
    return _ACTIVATION_NAMES.get(type(act_fn), _ACTIVATION_NAMES.get(act_fn))


def _ceil_div(number: int, by: int) -> int:
    return -(-number // by)


def _power_of_two(number: int) -> int:
    """The smallest that is no less."""
    return 1 << (number - 1).bit_length()


def gate_up_tile(hidden: int, rows: int) -> tuple[int, int]:
    """(rows, columns) that one program of gate_up_rows holds at a time, of `rows` in the whole batch."""
    widest = TILE // 2 if rows >= 2 * FILLED else TILE
    columns = min(_power_of_two(hidden), widest)
    return TILE // columns, columns


def down_shares(hidden: int, count: int, batch: int) -> int:
    """Into how many shares the core neurons of a sequence are split: enough to fill the card, none under a tile."""
    blocks = _ceil_div(hidden, DOWN_COLUMNS) * batch
    return min(_ceil_div(DOWN_PROGRAMS, blocks), _ceil_div(count, DOWN_ROWS), MOST_SHARES)


@torch.library.custom_op("coremat::core_rows_ffn", mutates_args=())
def core_rows_ffn(
    x: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    down_rows: torch.Tensor,
    core: torch.Tensor,
    activation: str,
) -> torch.Tensor:
    """The FFN on core neurons, for one token per sequence.

    x: [B, H]; gate, up: [F, H]; down_rows: [F, H], the transpose of `down_proj.weight` with a neuron's numbers side by
    side; core: int32 or int64 [B, K], or [1, K] for a set that all share, each in 0 .. F-1 (not checked: to look would
    be to wait for the device); activation: one of ACTIVATIONS. Rows may lie apart. Float32 inside.
    Returns [B, H] in the dtype of x, the same bits at every run.
    """
    _check(x, gate, up, down_rows, core, activation)
    with torch.cuda.device_of(x):
        active = _gate_up(x, gate, up, core, activation)
        return _down(active, down_rows, core, x.dtype)


@core_rows_ffn.register_fake
def _shape(x: torch.Tensor, *others: Any) -> torch.Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("coremat::sum_of_rows", mutates_args=())
def sum_of_rows(weights: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """For each token the sum of its rows `index` [N, K] of `rows` [F, H], each times its weight [N, K]. Float32 inside.
    Returns [N, H] in the dtype of the weights, the same bits at every run."""
    with torch.cuda.device_of(rows):
        return _down(weights.float(), rows, index.contiguous(), weights.dtype)


@sum_of_rows.register_fake
def _sum_shape(weights: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return weights.new_empty(len(weights), rows.shape[1])


@torch.library.custom_op("coremat::products_with_rows", mutates_args=())
def products_with_rows(x: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """For each token x [N, H] its products with its rows `index` [N, K] of `rows` [F, H]: float32 [N, K]."""
    from coremat.ffn.kernels import core_rows_triton as kernels

    (tokens, hidden), count, index = x.shape, index.shape[1], index.contiguous()
    found = x.new_empty(tokens, count, dtype=torch.float32)
    tile_rows, columns = gate_up_tile(hidden, tokens * count)
    with torch.cuda.device_of(rows):
        kernels.products[tokens, _ceil_div(count, tile_rows)](
            *(x, rows, index, found),
            *(hidden, count),
            *(x.stride(0), rows.stride(0), index.stride(0)),
            ROWS=tile_rows,
            COLUMNS=columns,
            **OPTIONS,
        )
    return found


@products_with_rows.register_fake
def _products_shape(x: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x.new_empty(index.shape, dtype=torch.float32)


def _gate_up(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, core: torch.Tensor, activation: str
) -> torch.Tensor:
    """a, float32 [B, K]."""
    from coremat.ffn.kernels import core_rows_triton as kernels

    (batch, hidden), count = x.shape, core.shape[1]
    active = x.new_empty(batch, count, dtype=torch.float32)
    rows, columns = gate_up_tile(hidden, batch * count)
    kernels.gate_up_rows[batch, _ceil_div(count, rows)](
        *(x, gate, up, core, active),
        *(hidden, count),
        *(x.stride(0), gate.stride(0), up.stride(0), _between_sets(core)),
        ACT=kernels.ACTIVATIONS[activation],
        ROWS=rows,
        COLUMNS=columns,
        **OPTIONS,
    )
    return active


def _down(active: torch.Tensor, down_rows: torch.Tensor, core: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """y, [B, H]."""
    from coremat.ffn.kernels import core_rows_triton as kernels

    (batch, count), hidden = active.shape, down_rows.shape[1]
    shares = down_shares(hidden, count, batch)
    partial = active.new_empty(batch, shares, hidden)
    kernels.down_rows_partial[batch, _ceil_div(hidden, DOWN_COLUMNS), shares](
        *(active, down_rows, core, partial),
        *(hidden, count, _ceil_div(count, shares)),
        *(down_rows.stride(0), _between_sets(core)),
        ROWS=DOWN_ROWS,
        COLUMNS=DOWN_COLUMNS,
        **OPTIONS,
    )
    y = active.new_empty(batch, hidden, dtype=dtype)
    kernels.down_reduce[batch, _ceil_div(hidden, REDUCE_COLUMNS)](
        *(partial, y, hidden, shares), SHARES=_power_of_two(shares), COLUMNS=REDUCE_COLUMNS, **OPTIONS
    )
    return y


def _between_sets(core: torch.Tensor) -> int:
    """How far it is from one sequence's set to the next; 0 where all share one."""
    return core.stride(0) if len(core) > 1 else 0


def _check(
    x: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    down_rows: torch.Tensor,
    core: torch.Tensor,
    activation: str,
) -> None:
    if activation not in ACTIVATIONS:
        raise UnsupportedError(f"activation is {activation!r}; accepted: {', '.join(ACTIVATIONS)}.")
    for name, matrix, rows in (("x", x, x), ("gate", gate, gate), ("up", up, gate), ("down_rows", down_rows, gate)):
        if matrix.dtype not in DTYPES:
            raise UnsupportedError(f"{name} is {matrix.dtype}; accepted: {', '.join(map(str, DTYPES))}.")
        wanted = (len(rows), x.shape[-1])
        if matrix.shape != wanted or matrix.stride(1) != 1:
            raise UnsupportedError(
                f"{name} has shape {tuple(matrix.shape)} and strides {matrix.stride()}; "
                f"accepted: {wanted}, the numbers of a row side by side."
            )
    if core.dtype not in (torch.int32, torch.int64) or core.dim() != 2 or core.stride(1) != 1:
        raise UnsupportedError(f"core is {core.dtype} of shape {tuple(core.shape)}; accepted: int32 or int64 [B, K].")
    if len(core) not in (1, len(x)):
        raise UnsupportedError(f"core has {len(core)} sets for {len(x)} sequences; accepted: one each, or one for all.")
