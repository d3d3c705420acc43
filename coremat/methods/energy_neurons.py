"""Neurons by the energy of their activations over the prompt: what votes by sign leave out.

An ablation of core neurons, of coremat's own. In a gated FFN about half of the activations are positive, and large
negative ones count in the output as much as large positive ones. Here a neuron's score is the sum of its squared
activations. The first token of a sequence is left out: models park attention on it, and its activations are so large
that they would decide alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from coremat.methods.common.energy import energy, largest
from coremat.methods.corematching.core_neurons import core_count
from coremat.methods.layer_shares import LayerShares
from coremat.methods.options import Layer, Share
from coremat.methods.views import LayerView


@dataclass(frozen=True, kw_only=True)
class EnergyNeurons(LayerShares):
    """beta: share of neurons kept; weighted: a neuron's score is multiplied by the squared l2 norm of its column of
    `down_proj`, so that it is the energy of what the neuron adds to the output; prefill_from: from this layer on the
    prefill goes through the chosen neurons too."""

    name: ClassVar[str] = "energy-neurons"
    summary: ClassVar[str] = (
        "the neurons with the largest sum of squared activations over the prompt, first token left out"
    )
    paper: ClassVar[str] = "an ablation of core-neurons"

    beta: Share = 0.4
    weighted: bool = False
    prefill_from: Layer | None = None

    def neurons(self, layer: LayerView) -> torch.Tensor:
        scores = energy(layer.activations, all_but_first(layer.valid))
        if self.weighted:
            scores = scores * layer.down_norms.square()
        return largest(scores, self.neuron_count(scores.shape[-1]))

    def neuron_count(self, size: int) -> int:
        return core_count(size, self.beta)

    def prefill_neurons_from(self) -> int | None:
        return self.prefill_from


def all_but_first(valid: torch.Tensor) -> torch.Tensor:
    """The valid tokens of each sequence but the first, wherever padding ends; a sequence of one token has none left.
    valid: bool [B, T]. Returns bool [B, T]."""
    return valid & (valid.cumsum(1) > 1)
