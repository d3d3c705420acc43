"""GRIFFIN: the neurons that are large in most tokens of the prompt, whatever their sign.

Dong, Chen and Chi, "Prompt-prompted Adaptive Structured Pruning for Efficient LLM Generation", COLM 2024 (arXiv
2404.01365): neurons that are large beside the others of their token tend to be so in all tokens of a sequence
("flocking"). The activations of each token of the prompt are divided by their l2 norm; a neuron's score is the l2 norm
of what it has over all tokens. The neurons with the largest scores give the whole answer; the prompt runs dense.

Departures: sums in float32 whatever the model computes in; a token without activations has no say (the authors' code
divides by zero); a choice for each sequence of a batch (their code: one sequence at a time), or, with
`neuron_sets="batch"`, one by the tokens of all sequences together.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from coremat.methods.common.energy import energy, largest
from coremat.methods.corematching.core_neurons import core_count
from coremat.methods.layer_shares import LayerShares
from coremat.methods.options import Layer, Share
from coremat.methods.views import LayerView, Voters


@dataclass(frozen=True, kw_only=True)
class Griffin(LayerShares):
    """beta: share of neurons kept (the authors': half). voters: the tokens whose activations count: "all" (the paper),
    "text" or "last" (the last prompt token). neuron_sets: a set for each "sequence", or one for the whole "batch".
    prefill_from: from this layer on the prefill goes through the chosen neurons too (the paper: never)."""

    name: ClassVar[str] = "griffin"
    summary: ClassVar[str] = "GRIFFIN: the neurons with the largest activations over the prompt, normalised per token"
    paper: ClassVar[str] = "Dong et al., COLM 2024 (arXiv 2404.01365)"
    departures: ClassVar[str] = "sums in float32; a token without activations has no say; a set for each sequence"

    beta: Share = 0.5
    voters: Voters = "all"
    neuron_sets: Literal["sequence", "batch"] = "sequence"
    prefill_from: Layer | None = None

    def neurons(self, layer: LayerView) -> torch.Tensor:
        # Squares of the paper's scores, whose order is the same and which add up over sequences.
        scores = energy(layer.activations, layer.voters(self.voters), normalised=True)
        whole = scores.sum(0, keepdim=True) if self.shares_neurons() else scores
        return largest(whole, self.neuron_count(scores.shape[-1]))

    def neuron_count(self, size: int) -> int:
        return core_count(size, self.beta)

    def prefill_neurons_from(self) -> int | None:
        return self.prefill_from

    def shares_neurons(self) -> bool:
        return self.neuron_sets == "batch"
