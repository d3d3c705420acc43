"""Neurons drawn at random, as many as core-neurons keeps: what any choice of neurons has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from coremat.methods.common.random import generator
from coremat.methods.corematching.core_neurons import core_count
from coremat.methods.layer_shares import LayerShares
from coremat.methods.options import Layer, Seed, Share
from coremat.methods.views import LayerView


@dataclass(frozen=True, kw_only=True)
class RandomNeurons(LayerShares):
    """beta: share of neurons kept; prefill_from: from this layer on the prefill goes through them too; seed: of the
    draw, which also depends on the sequence and the layer."""

    name: ClassVar[str] = "random-neurons"
    summary: ClassVar[str] = "as many neurons as core-neurons keeps, drawn at random per sample and layer"
    paper: ClassVar[str] = "an ablation of core-neurons"

    beta: Share = 0.4
    prefill_from: Layer | None = None
    seed: Seed = 0

    def neurons(self, layer: LayerView) -> torch.Tensor:
        return random_neurons(layer, self.beta, self.seed)

    def neuron_count(self, size: int) -> int:
        return core_count(size, self.beta)

    def prefill_neurons_from(self) -> int | None:
        return self.prefill_from


def random_neurons(layer: LayerView, beta: float, seed: int) -> torch.Tensor:
    """As many neurons as would be core, drawn per sequence and layer. Returns int64 [B, m], ascending."""
    size = layer.activations.shape[-1]
    count = core_count(size, beta)
    drawn = [torch.randperm(size, generator=generator(seed, own, layer.number))[:count] for own in layer.seeds]
    return torch.stack(drawn).sort(-1).values.to(layer.activations.device)
