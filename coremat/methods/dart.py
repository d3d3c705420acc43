"""DART: image tokens that duplicate a few pivot tokens least.

Wen, Gao, Wang, Zhang, Zhang, Li, He and Zhang, "Stop Looking for Important Tokens in Multimodal Language Models:
Duplication Matters More", 2025 (arXiv 2502.11494). As in the authors' code: after layer K (`prune_layer`) the image and
the text tokens whose keys (after the rotary embedding, all heads) have the largest L1 norms are pivots; text counts
behind the image only. Each pivot in turn takes its part of the budget: of the image tokens that are still free those
whose hidden states are least like its own, by cosine. Pivots of the image stay, and all positions stay as they were.

Departures: hidden states are the layer's output as it is (the authors' code applies the decoder's last norm first,
whose weights scale the channels). Exactly the budget is spent, pivots of the image included, and where it does not
divide the first pivots take one token more (theirs: 132 tokens under the name of 128). The turns are those of the
image's pivots and then the text's, by falling norm (theirs: of a Python set). Of equals the lower place comes first. Of
several images each keeps at least one token; text counts behind the last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from coremat.methods.base import Method, Stage
from coremat.methods.budget import budget
from coremat.methods.options import Count, EarlierCache, FixedBudget, Layer
from coremat.methods.views import LayerView
from coremat.tensors import take

APART = 3  # between the scores of two turns: more than cosines differ


@dataclass(frozen=True, kw_only=True)
class DART(Method):
    """tokens: a count or a share (the authors' 128 of LLaVA-1.5's 576). image_pivots, text_pivots: how many;
    where there are fewer tokens, these. earlier_cache: "full" (the authors': the first layers keep all keys and values)
    or "cut"."""

    name: ClassVar[str] = "dart"
    summary: ClassVar[str] = "DART: image tokens that are least like a few pivots of image and text"
    paper: ClassVar[str] = "Wen et al., 2025 (arXiv 2502.11494)"
    departures: ClassVar[str] = "hidden states without the decoder's last norm; pivots count within the budget"

    tokens: FixedBudget = 0.2223
    prune_layer: Layer = 2
    image_pivots: Count = 4
    text_pivots: Count = 4
    earlier_cache: EarlierCache = "full"

    def stages(self, layers: int) -> Sequence[Stage]:
        return (Stage(self.prune_layer, self.tokens, earlier_cache=self.earlier_cache),)

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        """The later a token's turn, the lower: pivots, what each of them takes, and what none does."""
        image, norms = layer.image, layer.keys.float().abs().sum((1, 3))
        question = layer.text & (image.flip(1).cumsum(1).flip(1) == 0)  # no image token from here on
        own, own_there = largest(norms, image, self.image_pivots)
        asked, asked_there = largest(norms, question, self.text_pivots)
        pivots, there = torch.cat([own, asked], 1), torch.cat([own_there, asked_there], 1)
        unit = functional.normalize(layer.hidden.float(), dim=-1)
        likeness = (take(unit, pivots, 1) @ unit.transpose(1, 2)).masked_fill(~there[..., None], -1)
        kept = [budget(self.tokens, count) for count in image.sum(1).tolist()]
        left = torch.tensor(kept, device=image.device) - own_there.sum(1)
        scores = by_turns(likeness, image.scatter(1, own, False), quotas(left, there))
        falling = torch.arange(own.shape[1], 0, -1, device=image.device, dtype=scores.dtype)
        return scores.scatter(1, own, (APART * (pivots.shape[1] + falling)).expand_as(own))


def largest(norms: torch.Tensor, among: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of the `count` largest norms, int64 [B, count], ties to the lower; and bool: whether there are so many.

    norms: [B, T], not negative; among: bool [B, T]. A column that is not there is one outside `among`.
    """
    falling = norms.masked_fill(~among, -1).sort(dim=1, descending=True, stable=True)
    return falling.indices[:, :count], falling.values[:, :count] >= 0


def quotas(left: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """How many tokens each pivot takes of the `left` of a sequence, int64 [B]; the first ones take what does not
    divide, and pivots that are not there none. there: bool [B, P]. Returns int64 [B, P]; of less than none, none above
    0."""
    left, count = left[:, None], there.sum(1, keepdim=True)
    more = there.cumsum(1) <= left % count
    return (left // count + more) * there


def by_turns(likeness: torch.Tensor, free: torch.Tensor, quotas: torch.Tensor) -> torch.Tensor:
    """Scores [B, T]: each pivot in turn takes its quota of the free tokens that are least like it.

    likeness: [B, P, T], cosines; free: bool [B, T]; quotas: int64 [B, P]. What no pivot takes goes by its largest
    likeness to any, below all that are taken.
    """
    scores, turns = -likeness.amax(1), likeness.shape[1]
    for turn in range(turns):
        alike = likeness[:, turn]
        rank = alike.masked_fill(~free, torch.inf).sort(dim=1, stable=True).indices.argsort(1)
        taken = free & (rank < quotas[:, turn, None])
        scores = torch.where(taken, APART * (turns - turn) - alike, scores)
        free = free & ~taken
    return scores
