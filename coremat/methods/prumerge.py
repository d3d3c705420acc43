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

import torch
from torch.nn import functional

from coremat.core_tokens import budget as places_of
from coremat.core_tokens import highest
from coremat.methods.reduction import Reduction, VisionView, attention_on_patches
from coremat.methods.uniform import centres

LAYER = -1  # of the tower: whose queries and keys are needed
NEIGHBOURS = 32  # that are merged into each chosen token


def prumerge(view: VisionView, budget: int | float | str, plus: bool = False) -> Reduction:
    """Choose tokens, add to each its nearest neighbours, and gather what was dropped in one extra token.

    budget: "knee" (the authors' own count, the extra token beyond it), "all", or a count or share that the extra token
    is part of; with a budget of one there is none. `plus`: PruMerge+.
    """
    attention = _attention(view)
    if budget == "knee":
        chosen, extra = outliers(attention, plus), True
    else:
        count = places_of(1.0 if isinstance(budget, str) else budget, len(attention))
        extra = 1 < count < len(attention)
        chosen = fixed(attention, count - extra, plus)
    if chosen.all():
        return Reduction(chosen, view.features)
    return _merge(view, attention, chosen, extra)


def _attention(view: VisionView) -> torch.Tensor:
    queries, keys = (rows.flatten(1)[:, None] for rows in (view.queries, view.keys))
    return attention_on_patches(queries, keys, len(view.features))[0]


def outliers(attention: torch.Tensor, plus: bool) -> torch.Tensor:
    """The n places above the third quartile by more than one and a half interquartile ranges. Returns bool [N].

    PruMerge+ adds those at every N / 3n-th place from the first one on, the last place excepted.
    """
    low, high = attention.quantile(attention.new_tensor([0.25, 0.75]))
    count = max(1, int((attention > high + 1.5 * (high - low)).sum()))
    chosen = highest(attention, count)
    if plus:
        chosen[: -1 : max(1, len(chosen) // (3 * count))] = True
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


def _merge(view: VisionView, attention: torch.Tensor, chosen: torch.Tensor, extra: bool) -> Reduction:
    features, places = view.features.float(), chosen.nonzero()[:, 0]
    near = neighbours(view.patch_keys.flatten(1), places)
    weights = attention.new_zeros(len(places), len(attention)).scatter_(1, near, attention[near])
    held, keep = view.features.clone(), chosen.clone()
    held[places] = (features[places] + weights @ features).to(held.dtype)
    if extra:
        last = (~chosen).nonzero()[-1, 0]
        held[last] = ((attention * ~chosen) @ features).to(held.dtype)
        keep[last] = True
    return Reduction(keep, held)


def neighbours(keys: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The other tokens nearest to each of `places` [T] by the cosine of keys [N, C], chosen or not: int64 [T, 32]."""
    unit = functional.normalize(keys, dim=-1)
    cosine = (unit[places] @ unit.T).scatter_(1, places[:, None], -torch.inf)
    return cosine.sort(dim=1, descending=True, stable=True).indices[:, : min(NEIGHBOURS, len(keys) - 1)]
