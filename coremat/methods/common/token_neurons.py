"""An FFN in which each token has its own neurons, found as it comes: every neuron is computed, the others are zeroed.

Accuracy, and no speed: rows that differ from token to token would be gathered anew at every step.
"""

from collections.abc import Callable
from typing import Any

import torch

from coremat.ffn.per_token import PerTokenFFN

Choose = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class TokenNeuronsFFN(PerTokenFFN):
    """An FFN over `mlp`. choose(x, gate): from the FFN's input [B, q, H] and act(gate x) [B, q, F] to bool [B, q, F],
    the neurons that each token uses. weights: what `choose` holds beside the model."""

    def __init__(self, mlp: Any, count: int, choose: Choose, *weights: torch.Tensor) -> None:
        super().__init__(mlp, count)
        self._choose, self._weights = choose, weights

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        mlp = self.mlp
        gate = mlp.act_fn(mlp.gate_proj(x))
        active = gate * mlp.up_proj(x)
        return mlp.down_proj(active.masked_fill(~self._choose(x, gate), 0))

    @property
    def bytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self._weights)
