"""VisPruner: important image tokens by the class token's attention, and the least duplicated of the rest.

Zhang, Cheng, Lu, Zhang, Zhuo, Cao, Guo, She and Zhang, "Beyond Text-Visual Attention: Exploiting Visual Cues for
Effective Token Pruning in VLMs", ICCV 2025 (arXiv 2412.01818, second version). A share of the budget goes to the tokens
with the most attention of the class token. The rest, in descending order of attention, is a list that is split into
even and odd positions; the eight even tokens that are most like an odd one are deleted, and what is left (even ones,
most alike first, then odd ones) is split again, until the budget is met.

Departures: the even half of a list of odd length has one token more, and a step deletes at most the even half (the
authors' code raises at both, as where fewer than eight diverse tokens are asked for). Cosines are float32. Of equal
attention the lower place comes first; of equally duplicated tokens the one that is earlier in the list is deleted. The
budget is the sequence's, shared out over its images (theirs: per image).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.budget import as_fraction
from coremat.methods.options import FixedBudget, Positions, Share
from coremat.methods.views import ImageView

STEP = 8  # tokens that are deleted at a time


@dataclass(frozen=True, kw_only=True)
class VisPruner(Method):
    """tokens: a count or a share (the authors' 128, 64 or 32 of LLaVA-1.5's 576). important: the share of these that
    goes by attention, rounded down. tower_layer: whose attention is read. positions: of the kept tokens."""

    name: ClassVar[str] = "vispruner"
    summary: ClassVar[str] = "VisPruner: image tokens by the class token's attention, and diverse ones of the rest"
    paper: ClassVar[str] = "Zhang et al., ICCV 2025 (arXiv 2412.01818)"
    departures: ClassVar[str] = "lists of any length are halved; the budget is the sequence's, not the image's"
    needs: ClassVar[frozenset[str]] = frozenset({"class token"})

    tokens: FixedBudget = 0.2223
    important: Share = 0.5
    tower_layer: int = -2
    positions: Positions = "auto"

    def stages(self, layers: int) -> Sequence[Stage]:
        return (Stage(0, self.tokens, self.positions),)

    def tower_layers(self) -> Sequence[int]:
        return (self.tower_layer,)

    def before_projector(self, image: ImageView, keep: int | None) -> Reduction:
        count = keep or 0
        important = int(as_fraction(self.important) * count)
        attention = image.tower[self.tower_layer].attention().mean(0)
        ranked = attention.sort(descending=True, stable=True).indices
        diverse = least_duplicated(image.features, ranked[important:], count - important)
        places = torch.zeros_like(attention, dtype=torch.bool)
        return Reduction(places.index_fill_(0, torch.cat([ranked[:important], diverse]), True))


def least_duplicated(features: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of a list of places: again and again the even ones that are most like an odd one are deleted.

    features: [N, C]; places: int64 [R], different. Returns int64 [count].
    """
    unit = functional.normalize(features.float(), dim=-1)
    likeness = unit @ unit.T
    while len(places) > count > 0:
        even, odd = places[::2], places[1::2]
        duplication = likeness[even][:, odd].amax(1)
        most_alike_first = duplication.sort(descending=True, stable=True).indices
        places = torch.cat([even[most_alike_first[min(STEP, len(places) - count) :]], odd])
    return places[:count]
