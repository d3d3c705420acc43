"""Attention masks over the tokens that are left, in the form that the model's attention backend expects."""

import torch

from coremat.errors import UnsupportedError
from coremat.runtime.kept_tokens import KeptTokens
from coremat.tensors import take

BACKENDS = ("sdpa", "eager", "flash")


def backend_of(implementation: object) -> str:
    """Which of `BACKENDS` an `_attn_implementation` is."""
    kind = next((k for k in BACKENDS if k in str(implementation)), None)
    if kind is None:
        raise UnsupportedError(f"attention {implementation!r}; accepted: sdpa, eager, flash attention.")
    return kind


def _form(allowed: torch.Tensor, backend: str, dtype: torch.dtype) -> torch.Tensor:
    """bool mask [B, 1, q, kv] for sdpa; for eager attention what is added to the logits."""
    if backend != "eager":
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def prefill_mask(
    mask: torch.Tensor | None, kept: KeptTokens, size: int, backend: str, dtype: torch.dtype
) -> torch.Tensor | None:
    """The model's own prefill mask over `size` columns, cut to the tokens that are left.

    Stays None (plain causal) where it was and nothing is padding.
    """
    index, live = kept.index, kept.live
    if index is None or (mask is None and kept.all_live):
        return mask
    if backend == "flash":
        return live
    if mask is None:
        mask = torch.ones(1, 1, size, size, dtype=torch.bool, device=index.device).tril()
    cut = take(take(mask, index, 2), index, 3)
    allowed = (cut if cut.dtype == torch.bool else cut == 0) & live[:, None, None]
    # Padding must see something, or its softmax is not a number; nothing ever sees it.
    return _form(allowed | torch.eye(index.shape[1], dtype=torch.bool, device=index.device), backend, dtype)


def decode_mask(kept: KeptTokens, columns: int, new: int, backend: str, dtype: torch.dtype) -> torch.Tensor | None:
    """Which of `columns` cached and new columns `new` queries see: the prompt's that are left, and causally all after.

    None where a single query sees all.
    """
    if new == 1 and kept.all_live:
        return None
    live = kept.live
    seen = torch.cat([live, live.new_ones(len(live), columns - live.shape[1])], dim=1)
    if backend == "flash":
        return seen
    slots = torch.arange(columns, device=live.device)
    return _form(seen[:, None, None] & (slots <= slots[-new:, None]), backend, dtype)
