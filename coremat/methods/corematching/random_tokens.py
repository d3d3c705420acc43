"""Image tokens drawn at random, as many as core-tokens keeps: what any choice of tokens has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from coremat.methods.base import Stage
from coremat.methods.common.random import generator
from coremat.methods.corematching.core_tokens import CoreTokens
from coremat.methods.options import Seed
from coremat.methods.views import LayerView


@dataclass(frozen=True, kw_only=True)
class RandomTokens(CoreTokens):
    """The options of core-tokens, and a seed. What a sequence draws depends on it and on the sequence alone."""

    name: ClassVar[str] = "random-tokens"
    summary: ClassVar[str] = "as many image tokens as core-tokens keeps, sample by sample, drawn at random"
    paper: ClassVar[str] = "an ablation of core-tokens"

    seed: Seed = 0

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        scores = torch.zeros(layer.image.shape)
        for own, image, seed in zip(scores, layer.image.cpu(), layer.seeds, strict=True):
            own[image] = torch.rand(int(image.sum()), generator=generator(self.seed, seed))
        return scores

    def counted_by(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return self.core_counts(layer)
