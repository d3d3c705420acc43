"""How a gated FFN decodes on its core neurons only: down[:, C] (act(gate[C] x) * (up[C] x)), a set C per sequence.

gathered: the core rows are copied once per prompt, when that pays, and multiplied by ordinary matrix products.
indexed: kernels read the core rows where they are; for CUDA with Triton.
"""

from typing import Any, Protocol

import torch

from coremat import checks
from coremat.errors import UnsupportedError
from coremat.ffn import kernels
from coremat.ffn.gathered import GatheredFFN, streamed
from coremat.timers import Stopwatch

BACKENDS = ("auto", "gathered", "indexed")


class SparseFFN(Protocol):
    """One layer's FFN while decoding. x is [B, q, H]; `core`, int64 [B, m], or [1, m] for a set that all share."""

    def prepare(self, core: torch.Tensor, watch: Stopwatch) -> None:
        """Take the neurons of a new prompt; whatever is copied for them, now or later, is timed by `watch`."""

    def materialise(self) -> None:
        """Copy now what would be copied later: from here on every step runs the same code on fixed buffers."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...

    @property
    def bytes(self) -> int:
        """Memory beyond the model's own."""


def check_backend(backend: str) -> None:
    checks.one_of("backend", backend, BACKENDS)


def make_ffn(mlp: Any, backend: str) -> SparseFFN:
    """The sparse FFN over `mlp` (`gate_proj`, `up_proj`, `down_proj`, `act_fn`); "auto" takes the fastest that can."""
    if backend == "gathered":
        return GatheredFFN(mlp)
    why_unsupported = _why_unsupported(mlp)
    if why_unsupported is None:
        from coremat.ffn.indexed import IndexedFFN

        return IndexedFFN(mlp)
    if backend == "indexed":
        raise UnsupportedError(f"backend is 'indexed', but {why_unsupported}; accepted: gathered, auto.")
    return GatheredFFN(mlp)


def _why_unsupported(mlp: Any) -> str | None:
    """Why the indexed kernels cannot run this FFN; None if they can."""
    device = mlp.gate_proj.weight.device
    if streamed(mlp):
        return "the FFN weights are offloaded"
    if not kernels.available(device):
        return f"its kernels need Triton and a CUDA device of capability 7.0 or higher, and the weights are on {device}"
    from coremat.ffn.indexed import why_unsupported

    return why_unsupported(mlp)
