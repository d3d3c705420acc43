"""Neurons that change from token to token: the best choice there can be, and what a predictor of it would cost."""

from typing import Any

import torch

from coremat.engine.gathered import GatheredFFN
from coremat.methods.neurons import Predictor, oracle_neurons
from coremat.stopwatch import Stopwatch


class OracleFFN:
    """Every neuron is computed, each token's largest are used (`coremat.engine.SparseFFN`): accuracy, and no speed."""

    bytes = 0

    def __init__(self, mlp: Any, count: int) -> None:
        self.mlp, self.count = mlp, count

    def prepare(self, core: torch.Tensor, watch: Stopwatch) -> None:
        """A token's neurons are known when it comes."""

    def settle(self) -> None:
        """There is nothing to copy."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        active = self.mlp.act_fn(self.mlp.gate_proj(x)) * self.mlp.up_proj(x)
        return self.mlp.down_proj(active * oracle_neurons(active, self.count))


class PredictedFFN(GatheredFFN):
    """A predictor's work at every token, and an FFN of as many rows: speed, and answers that mean nothing.

    What the untrained predictor says is thrown away; the rows are those of the prompt's random set.
    """

    def __init__(self, mlp: Any, count: int) -> None:
        super().__init__(mlp)
        weight = mlp.gate_proj.weight
        self._count = count
        self._predictor = Predictor(weight.shape[1], weight.shape[0]).to(weight.device, weight.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self._predictor.scores(x).topk(self._count, dim=-1)
        return super().__call__(x)

    @property
    def bytes(self) -> int:
        own = sum(weight.numel() * weight.element_size() for weight in self._predictor.parameters())
        return super().bytes + own
