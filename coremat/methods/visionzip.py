"""VisionZip: dominant tokens by the class token's attention, and contextual ones that the rest is merged into.

Yang, Chen, Tian, Wang, Li, Yu and Jia, "VisionZip: Longer is Better but Not Necessary in Vision Language Models",
CVPR 2025 (dominant token selection; contextual tokens merging). As in the authors' code, attention and keys are those
of the layer that gives the features, and a contextual token is its target plus the mean of those assigned to it.

Departures: kept places ascend (the authors': class token, dominant, contextual), and the class token's feature takes
the first dropped place. Where every token stays nothing is merged, and no class token is added. A tower without a class
token gives the attention that each patch receives, and all dominant tokens are patches.
"""

import torch
from torch.nn import functional

from coremat.core_tokens import budget as places_of
from coremat.core_tokens import highest
from coremat.methods.reduction import Reduction, VisionView, attention_on_patches

LAYER = -2  # of the tower: whose queries and keys are needed


def split(count: int) -> tuple[int, int]:
    """How many of `count` tokens are dominant, the class token among them, and how many contextual.

    The published pairs (162 + 30, 108 + 20, 54 + 10) are all 27 : 5; contextual ones are rounded down.
    """
    contextual = count * 5 // 32
    return count - contextual, contextual


def visionzip(view: VisionView, budget: int | float) -> Reduction:
    """Exactly `budget` places: dominant patches, the class token's feature, contextual tokens."""
    patches = len(view.features)
    count = places_of(budget, patches)
    if count == patches:
        return Reduction(torch.ones(patches, dtype=torch.bool, device=view.features.device), view.features)
    dominant, contextual = split(count)
    attention = attention_on_patches(view.queries, view.keys, patches).sum(0)
    keep = highest(attention, dominant - (view.cls is not None))
    held = view.features.clone()
    if contextual:
        rest = (~keep).nonzero()[:, 0]
        targets = rest[:: len(rest) // contextual][:contextual]
        keep[targets] = True
        held[targets] = merged(view, targets, (~keep).nonzero()[:, 0]).to(held.dtype)
    if view.cls is not None:
        first = (~keep).nonzero()[0, 0]
        held[first] = view.cls.to(held.dtype)
        keep[first] = True
    return Reduction(keep, held)


def merged(view: VisionView, targets: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Each target plus the mean of the others that are most like it, by the cosine of keys averaged over heads.

    A target that is nobody's stays as it is. targets: [C], others: [R], places. Returns float32 [C, channels].
    """
    unit = functional.normalize(view.patch_keys.mean(1), dim=-1)
    nearest = (unit[others] @ unit[targets].T).argmax(1)
    belongs = functional.one_hot(nearest, len(targets)).T.float()
    features = view.features.float()
    return features[targets] + belongs @ features[others] / belongs.sum(1, keepdim=True).clamp(min=1)
