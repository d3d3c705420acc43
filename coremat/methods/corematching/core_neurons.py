"""Core neurons: which FFN neurons matter for one sentence (paper section 2.1, eq. 2 to 4).

Functions on A, the input of `down_proj`: A_i[n] > 0 means that token i activates neuron n. The votes of eq. 4 are
counted in `coremat.methods.corematching.votes`.
Ties always go to the lower neuron index, so that every device selects the same set.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from coremat.methods.budget import as_fraction
from coremat.methods.corematching.votes import votes
from coremat.methods.layer_shares import LayerShares
from coremat.methods.options import Layer, Share
from coremat.methods.views import LayerView, Voters


def core_count(neurons: int, beta: float) -> int:
    """m = floor(beta * F), at least 1: how many neurons of a layer are core (eq. 3)."""
    return max(1, int(as_fraction(beta) * neurons))


def core_neurons(counts: torch.Tensor, beta: float) -> torch.Tensor:
    """C: the m neurons with the most votes (eq. 3). counts: int64 [B, F]. Returns int64 [B, m], ascending."""
    size = counts.shape[-1]
    # One integer per neuron, votes first and the lower index above: no two are equal, so topk has no ties to break.
    key = counts * size + torch.arange(size - 1, -1, -1, device=counts.device)
    return key.topk(core_count(size, beta), dim=-1).indices.sort(-1).values


@dataclass(frozen=True, kw_only=True)
class CoreNeurons(LayerShares):
    """alpha: share of a token's positive neurons that it votes for (eq. 2). beta: share of neurons kept (eq. 3).

    voters: the tokens that vote: "all" (the paper), "text" or "last" (the last prompt token). neuron_sets: a set for
    each "sequence" (the paper), or one for the whole "batch" by the votes of all its sequences: as fast as one
    sequence's, though what is answered depends on the rest of the batch. prefill_from: from this layer on the prefill
    goes through the core neurons too.
    """

    name: ClassVar[str] = "core-neurons"
    summary: ClassVar[str] = "core neurons only: every image token"
    paper: ClassVar[str] = "CoreMatching (ICML 2025), section 2.1, eq. 2 to 4"

    alpha: Share = 0.2
    beta: Share = 0.4
    voters: Voters = "all"
    neuron_sets: Literal["sequence", "batch"] = "sequence"
    prefill_from: Layer | None = None

    def neurons(self, layer: LayerView) -> torch.Tensor:
        counts = votes_of(layer, self.alpha, self.voters)
        return core_neurons(counts.sum(0, keepdim=True) if self.neuron_sets == "batch" else counts, self.beta)

    def neuron_count(self, size: int) -> int:
        return core_count(size, self.beta)

    def prefill_neurons_from(self) -> int | None:
        return self.prefill_from

    def shares_neurons(self) -> bool:
        return self.neuron_sets == "batch"


def votes_of(layer: LayerView, alpha: float, voters: Voters) -> torch.Tensor:
    """The votes of a layer's tokens, counted once however many slots read them: int64 [B, F]."""
    return layer.once(("votes", alpha, voters), lambda: votes(layer.activations, alpha, layer.voters(voters)))
