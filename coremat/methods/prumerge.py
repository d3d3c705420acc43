"""PruMerge and PruMerge+: outliers of the class token's attention stay, the others are merged into them.

Shang, Cai, Xu, Lee and Yan, "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV
2025: adaptive selection by interquartile range, merging by key similarity, and, for PruMerge+, places at even
distances. As in the authors' code, queries and keys come from the tower's last layer and are read as one wide head, and
merged tokens are added with their attention, which is not normalised.

Departures: kept places ascend (the authors': by attention), and the extra token, the last of theirs, takes the last
dropped place. At least one token is chosen (a flat map has no outlier, and theirs chooses none). The even distance of
PruMerge+ is at least one place (theirs is zero, and fails, when more than a third are outliers). Where every token
stays nothing is merged. A tower without a class token gives the attention that each patch receives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.common.grid import centres
from coremat.methods.common.outliers import outliers
from coremat.methods.common.picks import highest
from coremat.methods.options import Budget, Count, Positions
from coremat.methods.views import ImageView


@dataclass(frozen=True, kw_only=True)
class PruMerge(Method):
    """tokens: "knee" (the authors' own count, the extra token beyond it), or a count or share that the extra token is
    part of; with a budget of one there is none. tower_layer: whose queries and keys are read, the last in the authors'
    code. neighbours: merged into each chosen token. fence: interquartile ranges above the third quartile from which
    attention is an outlier. positions: of the kept tokens.
    """

    name: ClassVar[str] = "prumerge"
    summary: ClassVar[str] = "PruMerge: outliers of the class token's attention; the others merged"
    paper: ClassVar[str] = "Shang et al., ICCV 2025 (arXiv 2403.15388)"
    departures: ClassVar[str] = "kept places ascend; at least one token is chosen; what stays whole is not merged"
    needs: ClassVar[frozenset[str]] = frozenset({"class token"})
    plus: ClassVar[bool] = False

    tokens: Budget = "knee"
    tower_layer: int = -1
    neighbours: Count = 32
    fence: float = 1.5
    positions: Positions = "auto"

    def stages(self, layers: int) -> Sequence[Stage]:
        return () if self.tokens == "all" else (Stage(0, self.tokens, self.positions),)

    def tower_layers(self) -> Sequence[int]:
        return (self.tower_layer,)

    def before_projector(self, image: ImageView, keep: int | None) -> Reduction:
        """Choose tokens, add to each its nearest neighbours, and gather what was dropped in one extra token."""
        attention = self._attention(image)
        if keep is None:
            chosen, extra = adaptive(attention, self.plus, self.fence), True
        else:
            extra = 1 < keep < len(attention)
            chosen = fixed(attention, keep - extra, self.plus)
        if chosen.all():
            return Reduction(chosen)
        return self._merged(image, attention, chosen, extra)

    def _attention(self, image: ImageView) -> torch.Tensor:
        return image.tower[self.tower_layer].one_head.attention()[0]

    def _merged(self, image: ImageView, attention: torch.Tensor, chosen: torch.Tensor, extra: bool) -> Reduction:
        features, places = image.features.float(), chosen.nonzero()[:, 0]
        near = nearest(image.tower[self.tower_layer].patch_keys.flatten(1), places, self.neighbours)
        weights = attention.new_zeros(len(places), len(attention)).scatter_(1, near, attention[near])
        merged_features, keep = image.features.clone(), chosen.clone()
        merged_features[places] = (features[places] + weights @ features).to(merged_features.dtype)
        if extra:
            last = (~chosen).nonzero()[-1, 0]
            merged_features[last] = ((attention * ~chosen) @ features).to(merged_features.dtype)
            keep[last] = True
        return Reduction(keep, merged_features)


@dataclass(frozen=True, kw_only=True)
class PruMergePlus(PruMerge):
    """The options of PruMerge."""

    name: ClassVar[str] = "prumerge+"
    summary: ClassVar[str] = "PruMerge+: the same with places at even distances"
    plus: ClassVar[bool] = True


def adaptive(attention: torch.Tensor, plus: bool, fence: float = 1.5) -> torch.Tensor:
    """The n places above the third quartile by more than `fence` interquartile ranges. Returns bool [N].

    PruMerge+ adds those at every N / 3n-th place from the first one on, the last place excepted.
    """
    chosen = outliers(attention, fence)
    if plus:
        chosen[: -1 : max(1, len(chosen) // (3 * int(chosen.sum())))] = True
    return chosen


def fixed(attention: torch.Tensor, count: int, plus: bool) -> torch.Tensor:
    """Exactly `count` places, by attention. PruMerge+ as the authors' code does with a fixed share: half of them by
    attention, half at even distances; here, so that the count is exact, evenly over the places left. Returns bool [N].
    """
    if not plus:
        return highest(attention, count)
    chosen = highest(attention, count - count // 2)
    left = (~chosen).nonzero()[:, 0]
    chosen[left[centres(len(left), count // 2)]] = True
    return chosen


def nearest(keys: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` other tokens nearest to each of `places` [T] by the cosine of keys [N, C], chosen or not: int64
    [T, count], or fewer where there are fewer."""
    unit = functional.normalize(keys, dim=-1)
    cosine = (unit[places] @ unit.T).scatter_(1, places[:, None], -torch.inf)
    return cosine.sort(dim=1, descending=True, stable=True).indices[:, : min(count, len(keys) - 1)]
