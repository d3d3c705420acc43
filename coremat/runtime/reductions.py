"""What a method may say of some image tokens: which places stay, and what they hold."""

import torch

from coremat.errors import UnsupportedError
from coremat.methods.base import Method, Reduction


def check_reduction(method: Method, reduction: Reduction, features: torch.Tensor) -> None:
    """UnsupportedError for a reduction that does not fit the features [N, C] that the places held."""
    name, keep, merged = method.label, reduction.keep, reduction.features
    if keep.shape != features.shape[:1] or keep.dtype != torch.bool:
        raise UnsupportedError(
            f"{name} keeps {keep.dtype} {tuple(keep.shape)} of an image; accepted: bool ({len(features)},)."
        )
    if merged is not None and merged.shape != features.shape:
        raise UnsupportedError(f"{name} merges into {tuple(merged.shape)}; accepted: {tuple(features.shape)}.")


def check_budget(method: Method, reduction: Reduction, features: torch.Tensor, keep: int | None) -> None:
    """The same, and for one that keeps nothing, or more than `keep` (None: the method's own rule) of an image."""
    check_reduction(method, reduction, features)
    kept = int(reduction.keep.sum())
    if kept < 1 or (keep is not None and kept > keep):
        raise UnsupportedError(f"{method.label} keeps {kept} tokens of an image; accepted: 1 to {keep}, its budget.")
