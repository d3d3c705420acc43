"""FasterVLM: the image tokens that the vision tower's class token attends to most.

Zhang, Cheng, Lu, Wan, Zhuo, Xie, Guo, Zhang and Huang, "[CLS] Attention is All You Need for Training-Free Visual Token
Pruning: Make VLM Inference Faster", 2024 (arXiv 2412.01818): attention of the class token in the layer that gives the
features, mean over heads; the tokens with the most stay, in their order.

Departures: the budget is the sequence's, shared out over its images (the authors': per image).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from coremat.methods.base import Method, Reduction, Stage
from coremat.methods.common.picks import highest
from coremat.methods.options import FixedBudget, Positions
from coremat.methods.views import ImageView


@dataclass(frozen=True, kw_only=True)
class FasterVLM(Method):
    """tokens: a count or a share (the authors' 144, 58 or 29 of LLaVA-1.5's 576). tower_layer: whose attention is read.
    positions: of the kept tokens."""

    name: ClassVar[str] = "fastervlm"
    summary: ClassVar[str] = "FasterVLM: the image tokens that the tower's class token attends to most"
    paper: ClassVar[str] = "Zhang et al., 2024 (arXiv 2412.01818)"
    departures: ClassVar[str] = "the budget is the sequence's, not the image's"
    needs: ClassVar[frozenset[str]] = frozenset({"class token"})

    tokens: FixedBudget = 0.25
    tower_layer: int = -2
    positions: Positions = "auto"

    def stages(self, layers: int) -> Sequence[Stage]:
        return (Stage(0, self.tokens, self.positions),)

    def tower_layers(self) -> Sequence[int]:
        return (self.tower_layer,)

    def before_projector(self, image: ImageView, keep: int | None) -> Reduction:
        return Reduction(highest(image.tower[self.tower_layer].attention().mean(0), keep or 0))
