"""Core rows read where they are, by Triton kernels: no copy, no memory, and new neurons are new numbers in a buffer."""

from typing import Any

import torch

from coremat.ffn.kernels.core_rows import ACTIVATIONS, activation_name, core_rows_ffn
from coremat.ffn.workspace import Workspace
from coremat.timers import Stopwatch


class IndexedFFN:
    """One layer's FFN (`coremat.ffn.SparseFFN`) over `mlp`, whose `down_proj` lies neuron by neuron."""

    def __init__(self, mlp: Any) -> None:
        self.mlp = mlp
        self._activation = activation_name(mlp.act_fn)
        self._workspace = Workspace()

    def prepare(self, core: torch.Tensor, watch: Stopwatch) -> None:
        self._core = self._workspace.keep("core", core.int())

    def materialise(self) -> None:
        """There is nothing to copy."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, hidden = x.shape
        mlp, core = self.mlp, self._core
        if tokens > 1 and len(core) > 1:
            core = core.repeat_interleave(tokens, 0)
        weights = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T
        exact = x.reshape(batch * tokens, hidden).to(weights[0].dtype)
        out = core_rows_ffn(exact, *weights, core, self._activation).view(batch, tokens, hidden)
        kind = x.device.type
        return out.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else out

    @property
    def bytes(self) -> int:
        return self._workspace.bytes


def why_unsupported(mlp: Any) -> str | None:
    """Why the kernels cannot run this FFN; None if they can."""
    if activation_name(mlp.act_fn) is None:
        return f"its kernels know the activations {', '.join(ACTIVATIONS)}, and this is {type(mlp.act_fn).__name__}"
    if any(part.bias is not None for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)):
        return "its kernels take no biases, and this FFN has some"
    if mlp.gate_proj.weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"its kernels take 16 and 32 bit, and this FFN is {mlp.gate_proj.weight.dtype}"
    return None
