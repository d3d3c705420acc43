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
