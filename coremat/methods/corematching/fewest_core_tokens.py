"""The paper's criterion turned round: the image tokens that activate the fewest core neurons stay."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from coremat.methods.base import Stage
from coremat.methods.corematching.core_tokens import CoreTokens
from coremat.methods.views import LayerView


@dataclass(frozen=True, kw_only=True)
class FewestCoreTokens(CoreTokens):
    """The options of core-tokens. At the knee as many tokens stay as core-tokens keeps."""

    name: ClassVar[str] = "fewest-core-tokens"
    summary: ClassVar[str] = "as many image tokens as core-tokens keeps, those with the fewest core neurons"
    paper: ClassVar[str] = "an ablation of core-tokens"

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return -self.core_counts(layer)

    def counted_by(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return self.core_counts(layer)
