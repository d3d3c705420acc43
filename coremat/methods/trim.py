"""TRIM: the image tokens that CLIP's text tower sets apart from the others for this question.

Song, Wang, Chen, Wang, Guan and Wang, "Less is More: A Simple yet Effective Token Reduction Method for Efficient
Multi-modal LLMs", COLING 2025 (arXiv 2409.10994). Patch features of the layer that the projector gets go through CLIP's
last norm and projection, the question's first 77 tokens through its text tower; s is the softmax over the patches of
their negated dot products (as in the authors' code: for single patches, CLIP's likeness to the text is inverted). The
upper outliers of s stay, and the mean of all others is appended as one token.

Departures: with a budget in place of the outliers, the mean is part of it; with a budget of one there is none. The mean
takes the last dropped place (theirs: the end). At least one patch is chosen. Tiles are treated as images. Of equal
scores the lower place comes first. Where every token stays there is no mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.common.clip import TextTower, text_tower
from coremat.methods.common.outliers import outliers
from coremat.methods.common.picks import highest
from coremat.methods.options import Budget, Positions
from coremat.methods.views import ImageView


@dataclass(frozen=True, kw_only=True)
class TRIM(Method):
    """tokens: "knee" (the authors' own count, the mean beyond it), or a count or share that the mean is part of.
    text_tower: the CLIP that the vision tower was taken from, a folder or a hub id in the local cache; none: the
    published one with a vision tower of this size. fence: interquartile ranges above the third quartile from which a
    score is an outlier. positions: of the kept tokens.
    """

    name: ClassVar[str] = "trim"
    summary: ClassVar[str] = "TRIM: image tokens that CLIP's text tower sets apart for this question"
    paper: ClassVar[str] = "Song et al., COLING 2025 (arXiv 2409.10994)"
    departures: ClassVar[str] = "the mean of what is dropped is part of the budget; tiles are treated as images"
    needs: ClassVar[frozenset[str]] = frozenset({"class token"})  # a CLIP tower

    tokens: Budget = "knee"
    text_tower: str | None = None
    fence: float = 1.5
    positions: Positions = "auto"

    def setup(self, model: Any) -> TextTower | None:
        return text_tower(model, self.text_tower)

    def stages(self, layers: int) -> Sequence[Stage]:
        return () if self.tokens == "all" else (Stage(0, self.tokens, self.positions),)

    def before_projector(self, image: ImageView, keep: int | None) -> Reduction:
        scores = relevance(image)
        mean = keep is None or 1 < keep < len(scores)
        chosen = outliers(scores, self.fence) if keep is None else highest(scores, keep - mean)
        return with_mean(image.features, chosen) if mean and not chosen.all() else Reduction(chosen)


def relevance(image: ImageView) -> torch.Tensor:
    """float32 [N], s: how far each patch is from the question, as shares of all patches."""
    tower: TextTower = image.state
    question = image.question.once("TRIM's text", lambda: tower.text(image.question.text)[0])
    return (-(tower.patches(image.features) @ question)).softmax(0)


def with_mean(features: torch.Tensor, chosen: torch.Tensor) -> Reduction:
    """The chosen places, bool [N], and the last of the others, which holds the mean of these. features: [N, C]."""
    merged, keep, dropped = features.clone(), chosen.clone(), ~chosen
    last = dropped.nonzero()[-1, 0]
    merged[last] = features[dropped].float().mean(0).to(merged.dtype)
    keep[last] = True
    return Reduction(keep, merged)
