"""Image tokens by the attention of the last prompt token, with a knee: FastV's score under CoreMatching's budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from coremat.methods.base import Method, Stage
from coremat.methods.options import Budget, EarlierCache, Knee, Layer, Positions
from coremat.methods.views import LayerView


@dataclass(frozen=True, kw_only=True)
class AttentionTokens(Method):
    """tokens: "knee" (those above the knee of the score), a count, a share, or "all". The score is the mean over heads
    in layer `prune_layer` - 1."""

    name: ClassVar[str] = "attention-tokens"
    summary: ClassVar[str] = "image tokens above the knee of the last token's attention"
    paper: ClassVar[str] = "CoreMatching (ICML 2025), the attention that its section 3 compares with"

    tokens: Budget = "knee"
    prune_layer: Layer = 2
    knee: Knee = "unsigned"
    positions: Positions = "original"
    earlier_cache: EarlierCache = "cut"

    def stages(self, layers: int) -> Sequence[Stage]:
        if self.tokens == "all":
            return ()
        return (Stage(self.prune_layer, self.tokens, self.positions, self.earlier_cache, self.knee),)

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return layer.attention("last").mean((1, 2))
