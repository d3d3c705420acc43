"""Core rows copied once per prompt, when that pays: an FFN that needs nothing but ordinary matrix products.

Copying reads and writes the core rows of all sequences, a share s of the FFN each way; every step without the copy
reads the other 1 - s in vain. So after s * 2 / (1 - s) such steps, and not before, the copy is made (ski rental): an
answer of one or two tokens never pays for it, and a batch whose sets together are as large as the FFN never makes it.
"""

from typing import Any

import torch
from torch.nn import functional

from coremat.ffn.rows import copy_rows, times_rows, weighted_rows
from coremat.ffn.workspace import Workspace
from coremat.tensors import membership
from coremat.timers import Stopwatch


class GatheredFFN:
    """One layer's FFN (`coremat.ffn.SparseFFN`) over `mlp`, whose `down_proj` lies neuron by neuron."""

    def __init__(self, mlp: Any) -> None:
        self.mlp = mlp
        self._leaves = streamed(mlp)
        self._workspace = Workspace()
        self._copied = False

    def prepare(self, core: torch.Tensor, watch: Stopwatch) -> None:
        self._core, self._watch, self._copied = core, watch, False
        self._steps_before_copy = break_even_steps(core.numel() / self.mlp.gate_proj.weight.shape[0])
        if self._leaves:
            self.materialise()

    def materialise(self) -> None:
        if not self._copied:
            with self._watch.running(), torch.no_grad():
                self._gather()
            self._copied = True

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self._copied and self._steps_before_copy > 0:
            self._steps_before_copy -= 1
            return self._with_bias(self._from_all_rows(x))
        self.materialise()
        return self._with_bias(self._from_copied_rows(x))

    # --- with the copy ----------------------------------------------------------------------------------------

    def _gather(self) -> None:
        mlp, room = self.mlp, self._workspace.room
        core = self._core = self._workspace.keep("core", self._core)
        gate, up, down = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T
        (sets, count), hidden = core.shape, gate.shape[1]
        self._gate_up = room("gate and up", gate, sets, 2 * count, hidden)
        copy_rows(gate, core, self._gate_up[:, :count])
        copy_rows(up, core, self._gate_up[:, count:])
        if self._copies_down:
            self._down = room("down", down, sets, count, hidden)
            copy_rows(down, core, self._down)
        biases = {"gate bias": mlp.gate_proj.bias, "up bias": mlp.up_proj.bias}
        kept = ((name, bias[core][:, None]) for name, bias in biases.items() if bias is not None)
        self._biases = [self._workspace.keep(name, bias) for name, bias in kept]

    @property
    def _copies_down(self) -> bool:
        """On a CPU the rows of `down_proj` are added up where they are, as fast as from a copy."""
        return self._leaves or self.mlp.down_proj.weight.device.type != "cpu"

    def _from_copied_rows(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = times_rows(x, self._gate_up).chunk(2, -1)
        if self._biases:
            gate, up = (part + bias.to(part.dtype) for part, bias in zip((gate, up), self._biases, strict=True))
        active = self.mlp.act_fn(gate) * up
        if self._copies_down:
            return active @ self._down
        return weighted_rows(active, self._core, self.mlp.down_proj.weight.T)

    # --- without ------------------------------------------------------------------------------------------------

    def _from_all_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Every neuron is computed, the core ones are used: the same answer as with the copy."""
        mlp = self.mlp
        active = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
        if self._copies_down:
            silenced = active * membership(self._core, active.shape[-1])[:, None]
            return functional.linear(silenced, mlp.down_proj.weight)
        core = self._core[:, None].expand(*x.shape[:2], -1)
        return weighted_rows(active.gather(-1, core), self._core, mlp.down_proj.weight.T)

    def _with_bias(self, out: torch.Tensor) -> torch.Tensor:
        bias = self.mlp.down_proj.bias
        return out if bias is None else out + bias.to(out.dtype)

    @property
    def bytes(self) -> int:
        return self._workspace.bytes


def streamed(mlp: Any) -> bool:
    """Whether the weights of this FFN are on its device during the prefill only (`coremat.offload`)."""
    return getattr(mlp.forward, "streamed", False)


def break_even_steps(share: float) -> float:
    """How many steps go by before a copy of this share of the FFN (of all sequences together) has paid for itself."""
    return float("inf") if share >= 1 else 2 * share // (1 - share)
