"""Rows of a matrix, others for each token or sequence: sums of them and products with them, read where they lie, and
copies.

On CUDA by Triton kernels; on a CPU by the two halves of torch's embedding bag, the forward for sums and the derivative
by the weights of its samples for products. In 16 bits the first is nearly as fast as the bytes that it reads, the
second takes about twice that, which is less than all rows where less than about half of them are wanted (`HALF_PAYS`).
"""

import torch
from torch.nn import functional

from coremat.ffn import kernels

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HALF_PAYS = 0.45  # share of the rows up to which a CPU is faster by products of 16 bits with them than with all rows
BAGS = 8  # partial sums that share the reading of the rows between threads


def reads_rows(rows: torch.Tensor) -> bool:
    """Whether the rows of this matrix can be read one by one, without a copy, on its device."""
    return rows.stride(1) == 1 and (rows.device.type == "cpu" or _has_kernels(rows))


def products_pay(index: torch.Tensor, rows: torch.Tensor) -> bool:
    """Whether `row_products` of the rows `index` [N, k] is less work than a product with all of `rows` [F, H]."""
    if not reads_rows(rows):
        return False
    halves = rows.dtype.itemsize < 4 and not _has_kernels(rows)
    return index.numel() < len(rows) * (HALF_PAYS if halves else 1)


def _has_kernels(rows: torch.Tensor) -> bool:
    return rows.stride(1) == 1 and rows.dtype in KERNEL_DTYPES and _kernels_on(rows.device)


def _kernels_on(device: torch.device) -> bool:
    """Asked at every step of every matrix, so answered from a table; not `functools.cache`, which compilers ignore."""
    if device not in _answers:
        _answers[device] = kernels.available(device)
    return _answers[device]


_answers: dict[torch.device, bool] = {}


def summed_rows(weights: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """For each token the sum of its rows `index` [N, k] of `rows` [F, H], each times its weight [N, k].

    In up to `BAGS` partial sums, each rounded once to the dtype of the rows. Returns [N, H] in the weights' dtype.
    """
    if _has_kernels(rows):
        from coremat.ffn.kernels.core_rows import sum_of_rows

        return sum_of_rows(weights.contiguous(), rows, index)
    tokens, count = weights.shape
    piece = -(-count // max(1, BAGS // tokens))
    starts = torch.arange(0, count, piece, device=rows.device)
    offsets = torch.arange(0, tokens * count, count, device=rows.device)[:, None] + starts
    exact = weights.flatten().to(rows.dtype)  # under autocast they are narrower than the rows
    bags = index.flatten().contiguous(), rows, offsets.flatten()
    parts = functional.embedding_bag(*bags, mode="sum", per_sample_weights=exact)
    wide = torch.promote_types(rows.dtype, torch.float32)
    return parts.view(tokens, len(starts), -1).sum(1, dtype=wide).to(weights.dtype)


def row_products(x: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """For each token x [N, H] its products with its rows `index` [N, k] of `rows` [F, H]. Returns [N, k]."""
    exact = x.to(rows.dtype).contiguous()
    if _has_kernels(rows):
        from coremat.ffn.kernels.core_rows import products_with_rows

        return products_with_rows(exact, rows, index).to(x.dtype)
    tokens, count = index.shape
    bag = torch.arange(tokens, device=rows.device)
    places = bag * count, bag.repeat_interleave(count)
    found = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        exact, rows, index.flatten().contiguous(), *places, 0
    )
    return found.view(tokens, count).to(x.dtype)


# --- of every sequence its own ----------------------------------------------------------------------------------------


def copy_rows(weight: torch.Tensor, core: torch.Tensor, room: torch.Tensor) -> None:
    """The rows of each set; many times faster than into memory that has to be found first."""
    for own, place in zip(core, room, strict=True):
        torch.index_select(weight, 0, own, out=place)


def times_rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """x [B, q, H] with rows [B or 1, n, H]: [B, q, n]. Rows on the left: the other way round is many times slower."""
    if len(rows) == 1:
        return functional.linear(x, rows[0])
    return torch.matmul(rows, x.transpose(1, 2)).transpose(1, 2)


def weighted_rows(weights: torch.Tensor, core: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`summed_rows` where all tokens of a sequence have its rows `core` [B or 1, m]. weights: [B, q, m]. Returns
    [B, q, H]."""
    index = core[:, None].expand_as(weights).flatten(0, 1)
    return summed_rows(weights.flatten(0, 1), index, rows).view(*weights.shape[:2], -1)
