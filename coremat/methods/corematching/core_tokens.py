"""Core tokens: which image tokens matter, told by the core neurons that they activate (section 2.2, eq. 5 and 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from coremat.methods.base import Method, Stage
from coremat.methods.corematching.bits import activated, count_true
from coremat.methods.corematching.core_neurons import core_neurons, votes_of
from coremat.methods.options import Budget, EarlierCache, Knee, Layer, Positions, Share
from coremat.methods.views import LayerView, Voters
from coremat.tensors import membership


def core_neuron_counts(activations: torch.Tensor, core: torch.Tensor) -> torch.Tensor:
    """|Gamma(x_m) with C|: how many core neurons each token activates (eq. 5).

    activations: [B, T, F]; core: bool [B, F]. Returns int64 [B, T].
    """
    return count_true(activated(activations) & core[:, None])


@dataclass(frozen=True, kw_only=True)
class CoreTokens(Method):
    """tokens: "knee" (the paper: as many as lie above the knee of the counts), a count, a share, or "all".

    alpha, beta, voters: of the core neurons of layer `prune_layer` - 1, which the tokens are counted by. knee:
    "unsigned" (the paper and its release: farthest from the chord on either side) or "signed" (below it only).
    """

    name: ClassVar[str] = "core-tokens"
    summary: ClassVar[str] = "core tokens only: every neuron while decoding"
    paper: ClassVar[str] = "CoreMatching (ICML 2025), section 2.2, eq. 5 and 6"

    tokens: Budget = "knee"
    prune_layer: Layer = 2
    alpha: Share = 0.2
    beta: Share = 0.4
    voters: Voters = "all"
    knee: Knee = "unsigned"
    positions: Positions = "original"
    earlier_cache: EarlierCache = "cut"

    def stages(self, layers: int) -> Sequence[Stage]:
        if self.tokens == "all":
            return ()
        return (Stage(self.prune_layer, self.tokens, self.positions, self.earlier_cache, self.knee),)

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return self.core_counts(layer)

    def core_counts(self, layer: LayerView) -> torch.Tensor:
        """How many core neurons each token activates: int64 [B, T]."""
        core = core_neurons(votes_of(layer, self.alpha, self.voters), self.beta)
        return core_neuron_counts(layer.activations, membership(core, layer.activations.shape[-1]))
