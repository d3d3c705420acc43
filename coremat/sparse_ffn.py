"""A gated FFN that decodes on core neurons only: down[:, C] (act(gate[C] x) * (up[C] x)), a set C per sequence."""

from typing import Any

import torch


class CoreFFN:
    """The core rows of one FFN, copied once per prompt into memory that is allocated once.

    mlp: any module with `gate_proj`, `up_proj`, `down_proj` (nn.Linear) and `act_fn`.
    """

    def __init__(self, mlp: Any) -> None:
        self.mlp = mlp
        self.rows: dict[str, torch.Tensor] = {}
        self.batch = self.count = 0

    def gather(self, core: torch.Tensor) -> None:
        """Copy the rows of `core` (int64 [B, m], the neurons of each sequence) into the workspace."""
        self.batch, self.count = core.shape
        flat = core.flatten()
        self._copy("gate", self.mlp.gate_proj.weight, flat)
        self._copy("up", self.mlp.up_proj.weight, flat)
        self._copy("down", self.mlp.down_proj.weight.T, flat)
        for name in ("gate", "up"):
            bias = getattr(self.mlp, f"{name}_proj").bias
            if bias is not None:
                self.rows[f"{name}_bias"] = bias.detach()[core][:, None]

    @torch.no_grad()
    def _copy(self, name: str, weight: torch.Tensor, rows: torch.Tensor) -> None:
        room = self.rows.get(name)
        if room is None or len(room) < len(rows) or room.dtype != weight.dtype or room.device != weight.device:
            room = self.rows[name] = weight.new_empty(len(rows), weight.shape[1])
        torch.index_select(weight, 0, rows, out=room[: len(rows)])

    def _matrix(self, name: str) -> torch.Tensor:
        return self.rows[name][: self.batch * self.count].view(self.batch, self.count, -1)

    def _project(self, name: str, x: torch.Tensor) -> torch.Tensor:
        out = torch.bmm(x, self._matrix(name).transpose(1, 2))
        bias = self.rows.get(f"{name}_bias")
        return out if bias is None else out + bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, q, H], row b through its own neurons. Returns [B, q, H]."""
        active = self.mlp.act_fn(self._project("gate", x)) * self._project("up", x)
        out = torch.bmm(active, self._matrix("down"))
        bias = self.mlp.down_proj.bias
        return out if bias is None else out + bias

    @property
    def bytes(self) -> int:
        """Memory of the workspace."""
        return sum(t.numel() * t.element_size() for t in self.rows.values())
