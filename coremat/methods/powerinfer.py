"""PowerInfer's time: a predictor's work at every token, and an FFN of as many neurons as it would find active.

Song, Mi, Xie and Chen, SOSP 2024. Such a predictor is trained for one checkpoint, on ReLU models. CoreMatching's paper
emulates its time on LLaVA, and so does this method: timing only, its answers mean nothing.

Departures: weights of the predictor are random; its rank is the same in every layer (theirs differs from layer to layer
about it); the split of neurons between two devices is not in it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from coremat.ffn.gathered import GatheredFFN
from coremat.methods.base import Method
from coremat.methods.corematching.core_neurons import core_count
from coremat.methods.options import Count, Seed, Share
from coremat.methods.random_neurons import random_neurons
from coremat.methods.reads import Reads
from coremat.methods.views import LayerView
from coremat.models.shape import DecoderShape


@dataclass(frozen=True, kw_only=True)
class PowerInfer(Method):
    """beta: share of neurons computed; rank: of the predictor's two matrices; seed: of the rows that are read."""

    name: ClassVar[str] = "powerinfer"
    summary: ClassVar[str] = (
        "a predictor's time at its sparsity (the paper's PowerInfer row); timing only, its answers mean nothing"
    )
    paper: ClassVar[str] = "Song et al., SOSP 2024 (arXiv 2312.12456)"
    departures: ClassVar[str] = "an untrained predictor of one rank: its time, not its choice"
    timing_only: ClassVar[bool] = True

    beta: Share = 0.2
    rank: Count = 1024
    seed: Seed = 0

    def neurons(self, layer: LayerView) -> torch.Tensor:
        return random_neurons(layer, self.beta, self.seed)

    def neuron_count(self, size: int) -> int:
        return core_count(size, self.beta)

    def reads(self, layer: int, shape: DecoderShape) -> Reads:
        """The neurons, and both matrices of the predictor."""
        own = self.rank * (shape.hidden + shape.ffn)
        return Reads.of_neurons(self.neuron_count(shape.ffn), shape.ffn, extra=own)

    def decode_ffn(self, number: int, mlp: Any, state: Any) -> "PredictedFFN":
        return PredictedFFN(mlp, self.neuron_count(mlp.gate_proj.weight.shape[0]), self.rank)


class Predictor(nn.Module):
    """One layer's predictor: hidden -> rank -> neurons, a ReLU between. Timing only.

    Its weights are random, so its work and its bytes are those of a trained one and what it says means nothing: the
    paper times PowerInfer on LLaVA in this sense. It reads what the FFN's norm reads.
    """

    def __init__(self, hidden: int, neurons: int, rank: int, seed: int = 0) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden, rank, bias=False)
        self.outer = nn.Linear(rank, neurons, bias=False)
        random = torch.Generator().manual_seed(seed)
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=random)
        self.requires_grad_(False)

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """How likely each neuron is to be active, as a number without a scale. x: [B, q, H]. Returns [B, q, F]."""
        return self.outer(self.inner(x).relu())


class PredictedFFN(GatheredFFN):
    """A predictor's work at every token, and an FFN of as many rows: speed, and answers that mean nothing.

    What the untrained predictor says is thrown away; the rows are those of the prompt's random set.
    """

    def __init__(self, mlp: Any, count: int, rank: int) -> None:
        super().__init__(mlp)
        weight = mlp.gate_proj.weight
        self._count = count
        self._predictor = Predictor(weight.shape[1], weight.shape[0], rank).to(weight.device, weight.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self._predictor.scores(x).topk(self._count, dim=-1)
        return super().__call__(x)

    @property
    def bytes(self) -> int:
        own = sum(weight.numel() * weight.element_size() for weight in self._predictor.parameters())
        return super().bytes + own
