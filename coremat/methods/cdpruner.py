"""CDPruner: image tokens that matter to the question and differ from each other, by a conditional determinantal point
process.

Zhang, Liu, Li, Lu, Zhang, Pan, She and Zhang, "Beyond Attention or Similarity: Maximizing Conditional Diversity for
Token Pruning in MLLMs", NeurIPS 2025 (arXiv 2506.10967). The kernel of tokens i and j is r_i * cos(i, j) * r_j, with
the cosine of what the projector makes of them and the relevance r of each, from above 0 up to 1. The set is found
greedily as a maximum a posteriori estimate (Chen, Zhang and Zhou, "Fast Greedy MAP Inference for Determinantal Point
Process", NeurIPS 2018): again and again the token that raises the determinant most, by an incremental Cholesky factor.

Relevance with a text tower is the authors': the negated cosine of CLIP's projected patches and the question, mean over
pieces of 77 tokens. Without one it is the negated cosine of each image token's embedding and the mean embedding of the
question at the decoder's input, which serves every family.

Departures: without a text tower, the relevance; tiles are treated as images; the budget is the sequence's, shared out
over its images (theirs: per image). Ties go to the lower place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional

from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.common.clip import TextTower, text_tower
from coremat.methods.common.defaults import NINTH
from coremat.methods.options import FixedBudget, Positions
from coremat.methods.views import ImageView

LEAST = 1e-6  # relevance of the least relevant token
ROUNDING = 1e-6  # of a token's own entry in the kernel: a gain below is none


@dataclass(frozen=True, kw_only=True)
class CDPruner(Method):
    """tokens: a count or a share (the authors' 64, 128 or 192 of LLaVA-1.5's 576). text_tower: the CLIP that the vision
    tower was taken from, a folder or a hub id in the local cache; none: relevance by the decoder's own embeddings of
    the question. positions: of the kept tokens."""

    name: ClassVar[str] = "cdpruner"
    summary: ClassVar[str] = "CDPruner: image tokens relevant to the question and unlike each other, by a DPP"
    paper: ClassVar[str] = "Zhang et al., NeurIPS 2025 (arXiv 2506.10967)"
    departures: ClassVar[str] = "without a text tower, relevance is by the embeddings of the decoder's input"

    tokens: FixedBudget = NINTH
    text_tower: str | None = None
    positions: Positions = "auto"

    def setup(self, model: Any) -> TextTower | None:
        return None if self.text_tower is None else text_tower(model, self.text_tower)

    def takes(self, slot: str) -> bool:
        """At one of two places: where CLIP's patches are, or where the decoder's embeddings are."""
        if slot in ("before_projector", "before_decoder"):
            return (slot == "before_projector") == (self.text_tower is not None)
        return super().takes(slot)

    def stages(self, layers: int) -> Sequence[Stage]:
        return (Stage(0, self.tokens, self.positions),)

    def before_projector(self, image: ImageView, keep: int | None) -> Reduction:
        assert image.project is not None
        tower: TextTower = image.state
        texts = image.question.once("CDPruner's text", lambda: tower.text(image.question.text))
        return self._reduced(image.project(image.features), -cosines(tower.patches(image.features), texts), keep)

    def before_decoder(self, image: ImageView, keep: int | None) -> Reduction:
        question = image.question.embeddings.float().sum(0, keepdim=True)  # to a cosine as good as the mean
        return self._reduced(image.features, -cosines(image.features, question), keep)

    def _reduced(self, features: torch.Tensor, relevance: torch.Tensor, keep: int | None) -> Reduction:
        return Reduction(cdpruner(features, relevance.mean(1), keep or 0))


def cosines(features: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """float32 [N, M], of features [N, C] and others [M, C]."""
    return functional.normalize(features.float(), dim=-1) @ functional.normalize(others.float(), dim=-1).T


def cdpruner(features: torch.Tensor, relevance: torch.Tensor, count: int) -> torch.Tensor:
    """The tokens of largest determinant that the greedy search finds. features: [N, C]; relevance: [N], of any range;
    count: from 1 to N. Returns bool [N]."""
    if count == len(features):
        return torch.ones(count, dtype=torch.bool, device=features.device)
    return greedy_map(kernel(features, relevance), count)


def kernel(features: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """float32 [N, N]: cosines, each side times its relevance brought to the range from `LEAST` to 1."""
    low, high = relevance.aminmax()
    scaled = (relevance - low + LEAST) / (high - low + LEAST)
    return scaled[:, None] * cosines(features, features) * scaled


def greedy_map(kernel: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of N tokens, each the one that raises the determinant of the chosen ones' kernel most; beyond the rank of
    the kernel all determinants are zero, and rounding decides. O(N count^2), and no step waits for the device.

    kernel: [N, N], positive semi-definite. Returns bool [N].
    """
    own = kernel.diagonal()
    gains = own.clone()  # by what factor each token would raise the determinant
    factor = kernel.new_zeros(count, len(kernel))  # the rows of the Cholesky factor of those that are chosen
    picks: list[torch.Tensor] = []
    for step in range(count):
        best = gains.argmax(0, keepdim=True)
        picks.append(best)
        above = factor[:step]
        projected = kernel[best][0] - above[:, best][:, 0] @ above
        factor[step] = torch.where(gains[best] > ROUNDING * own[best], projected * gains[best].rsqrt(), 0)
        gains -= factor[step].square()
        gains.index_fill_(0, best, -torch.inf)
    return torch.zeros_like(gains, dtype=torch.bool).index_fill_(0, torch.cat(picks), True)
