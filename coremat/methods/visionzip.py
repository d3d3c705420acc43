"""VisionZip: dominant tokens by the class token's attention, and contextual ones that the rest is merged into.

Yang, Chen, Tian, Wang, Li, Yu and Jia, "VisionZip: Longer is Better but Not Necessary in Vision Language Models",
CVPR 2025 (dominant token selection; contextual tokens merging). As in the authors' code, attention and keys are those
of the layer that gives the features, and a contextual token is its target plus the mean of those assigned to it.

Departures: kept places ascend (the authors': class token, dominant, contextual), and the class token's feature takes
the first dropped place. Where every token stays nothing is merged, and no class token is added. A tower without a class
token gives the attention that each patch receives, and all dominant tokens are patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from coremat.errors import ConfigError
from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.common.defaults import NINTH
from coremat.methods.common.picks import highest
from coremat.methods.options import Count, FixedBudget, Positions
from coremat.methods.views import ImageView, TowerView


@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    """tokens: a count or a share, of which 27 : 5 are dominant and contextual (a ninth by default). dominant,
    contextual: both counts, in place of `tokens` (the published pairs: 162 + 30, 108 + 20, 54 + 10; the code's
    defaults: 191 + 30); several images share them out. tower_layer: whose attention and keys are read. positions: of
    the kept tokens.
    """

    name: ClassVar[str] = "visionzip"
    summary: ClassVar[str] = "VisionZip: dominant tokens and merged contextual ones"
    paper: ClassVar[str] = "Yang et al., CVPR 2025 (arXiv 2412.04467)"
    departures: ClassVar[str] = "kept places ascend; the class token's feature takes the first dropped place"
    needs: ClassVar[frozenset[str]] = frozenset({"class token"})

    tokens: FixedBudget | None = None
    dominant: Count | None = None
    contextual: int | None = None
    tower_layer: int = -2
    positions: Positions = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.dominant is None) != (self.contextual is None):
            raise ConfigError(
                f"dominant is {self.dominant} and contextual {self.contextual}; accepted: both counts, or neither."
            )
        if self.contextual is not None and self.contextual < 0:
            raise ConfigError(f"contextual is {self.contextual}; accepted: a whole number, at least 0.")
        if self.whole_pair and self.tokens not in (None, self.whole_pair):
            raise ConfigError(
                f"tokens is {self.tokens} beside {self.dominant} dominant and {self.contextual} contextual ones; "
                f"accepted: {self.whole_pair}, or leave it out."
            )

    def stages(self, layers: int) -> Sequence[Stage]:
        return (Stage(0, self.whole_pair or self.tokens or NINTH, self.positions),)

    def tower_layers(self) -> Sequence[int]:
        return (self.tower_layer,)

    def before_projector(self, image: ImageView, keep: int | None) -> Reduction:
        """Exactly `keep` places: dominant patches, the class token's feature, contextual tokens."""
        count, patches, tower = keep or 0, len(image.features), image.tower[self.tower_layer]
        if count == patches:
            return Reduction(torch.ones(patches, dtype=torch.bool, device=image.features.device))
        dominant, contextual = self.split(count)
        own = image.class_token if dominant else None
        chosen = highest(tower.attention().sum(0), dominant - (own is not None))
        merged_features = image.features.clone()
        if contextual:
            rest = (~chosen).nonzero()[:, 0]
            targets = rest[:: len(rest) // contextual][:contextual]
            chosen[targets] = True
            others = (~chosen).nonzero()[:, 0]
            merged_features[targets] = merged(image.features, tower, targets, others).to(merged_features.dtype)
        if own is not None:
            first = (~chosen).nonzero()[0, 0]
            merged_features[first] = own.to(merged_features.dtype)
            chosen[first] = True
        return Reduction(chosen, merged_features)

    def split(self, count: int) -> tuple[int, int]:
        """Of `count` tokens those that are dominant, the class token among them, and the contextual (rounded down)."""
        contextual, whole = (5, 32) if self.dominant is None else (self.contextual or 0, self.whole_pair)
        return count - count * contextual // whole, count * contextual // whole

    @property
    def whole_pair(self) -> int:
        return (self.dominant or 0) + (self.contextual or 0)


def merged(features: torch.Tensor, tower: TowerView, targets: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Each target plus the mean of the others that are most like it, by the cosine of keys averaged over heads.

    A target that is nobody's stays as it is. features: [N, channels]; targets: [C], others: [R], places. Returns
    float32 [C, channels].
    """
    unit = functional.normalize(tower.patch_keys.mean(1), dim=-1)
    nearest = (unit[others] @ unit[targets].T).argmax(1)
    belongs = functional.one_hot(nearest, len(targets)).T.float()
    features = features.float()
    return features[targets] + belongs @ features[others] / belongs.sum(1, keepdim=True).clamp(min=1)
