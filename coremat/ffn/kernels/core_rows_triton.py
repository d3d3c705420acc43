"""The kernels behind `core_rows_ffn`: y = down[:, C] (act(gate[C] x) * (up[C] x)), rows read where they lie.

A row is contiguous, so following the list C to it reads memory as well as a dense matrix product does. Decoding waits
for memory, and all that these kernels aim at is to keep enough bytes under way. Three launches:

    gate_up_rows        a = act(gate[C] x) * (up[C] x)     one pass over both matrices, a stays float32
    down_rows_partial   sums of a[k] * down[:, k], over a share of C each
    down_reduce         the shares, added in a fixed order

The last two also add up other rows for each token (`sum_of_rows`); `products` multiplies a token with rows of its own.

Atomic adds in the place of the last would save a launch, but the order of the sum, and with it the last bits of the
answer, would change from run to run. Weights become float32 as they are loaded; no other arithmetic is done. Where H
and the strides are multiples of 16, the masks over columns leave the loads of weights 128 bits wide.
"""

import triton
import triton.language as tl


@triton.jit
def silu(x: tl.tensor) -> tl.tensor:
    return x * tl.sigmoid(x)


@triton.jit
def gelu(x: tl.tensor) -> tl.tensor:
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_pytorch_tanh(x: tl.tensor) -> tl.tensor:
    """(1 + tanh(z)) / 2 is sigmoid(2 z), and 2 sqrt(2 / pi) is 1.5957..."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def relu(x: tl.tensor) -> tl.tensor:
    return tl.maximum(x, 0.0)


ACTIVATIONS = {"silu": silu, "gelu": gelu, "gelu_pytorch_tanh": gelu_pytorch_tanh, "relu": relu}


@triton.jit
def gate_up_rows(
    x: tl.tensor,  # [B, H]
    gate: tl.tensor,  # [F, H]
    up: tl.tensor,  # [F, H]
    core: tl.tensor,  # [B, K], or [K] with core_stride 0
    active: tl.tensor,  # out: float32 [B, K]
    H: int,
    K: int,
    x_stride: int,
    gate_stride: int,
    up_stride: int,
    core_stride: int,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """active[b, k] = act(gate[C_bk] x_b) * (up[C_bk] x_b). Grid (B, ceil(K / ROWS)).

    A program owns whole rows of both matrices, so no sum crosses programs and `active` is written once. Sequences are
    the fastest dimension of the grid: where their sets meet, the second finds the row in the L2 cache. Weights go by
    once (evict_first); x is read by every program and stays.
    """
    b = tl.program_id(0)
    k = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    # int64 before the product: row times stride passes 2^31 where one allocation holds many layers.
    row = tl.load(core + b * core_stride + k, mask=k < K, other=0).to(tl.int64)[:, None]
    h = tl.arange(0, COLUMNS)[None, :]
    on_gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    on_up = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, H, COLUMNS):
        column = start + h
        there = column < H
        value = tl.load(x + b * x_stride + column, mask=there, other=0.0).to(tl.float32)
        of_gate = tl.load(gate + row * gate_stride + column, mask=there, other=0.0, eviction_policy="evict_first")
        of_up = tl.load(up + row * up_stride + column, mask=there, other=0.0, eviction_policy="evict_first")
        on_gate += of_gate.to(tl.float32) * value
        on_up += of_up.to(tl.float32) * value
    tl.store(active + b * K + k, ACT(tl.sum(on_gate, 1)) * tl.sum(on_up, 1), mask=k < K)


@triton.jit
def products(
    x: tl.tensor,  # [N, H]
    rows: tl.tensor,  # [F, H]
    index: tl.tensor,  # [N, K]
    found: tl.tensor,  # out: float32 [N, K]
    H: int,
    K: int,
    x_stride: int,
    row_stride: int,
    index_stride: int,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """found[n, k] = rows[I_nk] x_n, as one of the two matrices of `gate_up_rows`. Grid (N, ceil(K / ROWS))."""
    n = tl.program_id(0)
    k = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row = tl.load(index + n * index_stride + k, mask=k < K, other=0).to(tl.int64)[:, None]
    h = tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, H, COLUMNS):
        column = start + h
        there = column < H
        value = tl.load(x + n * x_stride + column, mask=there, other=0.0).to(tl.float32)
        weight = tl.load(rows + row * row_stride + column, mask=there, other=0.0, eviction_policy="evict_first")
        total += weight.to(tl.float32) * value
    tl.store(found + n * K + k, tl.sum(total, 1), mask=k < K)


@triton.jit
def down_rows_partial(
    active: tl.tensor,  # float32 [B, K]
    down: tl.tensor,  # [F, H], neuron by neuron
    core: tl.tensor,  # [B, K], or [K] with core_stride 0
    partial: tl.tensor,  # out: float32 [B, S, H]
    H: int,
    K: int,
    SHARE: int,
    down_stride: int,
    core_stride: int,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """partial[b, s] = sum of active[b, k] * down[C_bk], k in the s-th share of K. Grid (B, ceil(H / COLUMNS), S).

    Column blocks alone are 16 programs for a hidden size of 4096, on a card that needs hundreds: so K is split too. A
    program walks down its columns ROWS at a time, and adds up across rows once, at the end.
    """
    b, s = tl.program_id(0), tl.program_id(2)
    h = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = h < H
    end = tl.minimum((s + 1) * SHARE, K)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(s * SHARE, end, ROWS):
        k = start + tl.arange(0, ROWS)
        row = tl.load(core + b * core_stride + k, mask=k < end, other=0).to(tl.int64)[:, None]
        value = tl.load(active + b * K + k, mask=k < end, other=0.0)[:, None]
        own = (k < end)[:, None] & there[None, :]
        weight = tl.load(down + row * down_stride + h[None, :], mask=own, other=0.0, eviction_policy="evict_first")
        total += weight.to(tl.float32) * value
    tl.store(partial + (b * tl.num_programs(2) + s) * H + h, tl.sum(total, 0), mask=there)


@triton.jit
def down_reduce(
    partial: tl.tensor,  # float32 [B, S, H]
    y: tl.tensor,  # out: [B, H]
    H: int,
    S: int,
    SHARES: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """y[b] = sum of partial[b, s] over s; one tile holds all S, padded to SHARES. Grid (B, ceil(H / COLUMNS))."""
    b = tl.program_id(0)
    h = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    s = tl.arange(0, SHARES)[:, None]
    own = (s < S) & (h < H)[None, :]
    total = tl.sum(tl.load(partial + (b * S + s) * H + h[None, :], mask=own, other=0.0), 0)
    tl.store(y + b * H + h, total.to(y.dtype.element_ty), mask=h < H)
