"""PyramidDrop: image tokens leave in stages, half of those that are left at each.

Xing, Huang, Dong, Lu, Zhang, Zang, Cao, He, Wang, Wu and Lin, "PyramidDrop: Accelerating Your Large Vision-Language
Models via Pyramid Visual Redundancy Reduction", CVPR 2025 (arXiv 2410.17247). Before decoder layers 8, 16 and 24 of 32
the attention that the last instruction token would have in that very layer ranks the image tokens, mean over heads; the
ratios 0.5, 0.25 and 0.125 are of the prompt's image tokens. As in the authors' code, positions are counted anew behind
each stage, and the layers before keep their caches.

Departures: where no layers are given, the stages are at the same depths of any model (quarters; the authors keep 8, 16
and 24 for 40 layers too). Of several images each keeps at least one token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from coremat.errors import ConfigError
from coremat.methods.base import Method, Stage
from coremat.methods.options import EarlierCache, FixedBudget, Layer, Positions, Share
from coremat.methods.views import LayerView

STAGES = 3


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Method):
    """tokens: what the last stage leaves; each stage before it leaves twice as many as the next (by default the
    paper's half, quarter and eighth). layers: decoder layers that have run before each stage (typed 8/16/24), equal
    parts of the depth by default. ratios: in place of `tokens`, the share of the prompt's tokens that each leaves."""

    name: ClassVar[str] = "pyramiddrop"
    summary: ClassVar[str] = "PyramidDrop: image tokens leave in three stages, by the attention of the layer to come"
    paper: ClassVar[str] = "Xing et al., CVPR 2025 (arXiv 2410.17247)"
    departures: ClassVar[str] = "stages at quarters of the depth where no layers are given"

    tokens: FixedBudget = 0.125
    layers: tuple[Layer, ...] | None = None
    ratios: tuple[Share, ...] | None = None
    positions: Positions = "auto"
    earlier_cache: EarlierCache = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers and self.ratios and len(self.layers) != len(self.ratios):
            raise ConfigError(
                f"layers is {self.layers!r} beside {len(self.ratios)} ratios; accepted: as many layers as ratios."
            )

    def stages(self, layers: int) -> Sequence[Stage]:
        keeps = self.ratios or doubled(self.tokens, len(self.layers) if self.layers else STAGES)
        pairs = zip(self.layers or even(layers, len(keeps)), keeps, strict=False)
        return tuple(Stage(after, keep, self.positions, self.earlier_cache) for after, keep in pairs)

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return layer.next_attention.mean((1, 2))


def doubled(tokens: float, stages: int) -> list[float]:
    """Budgets of `stages` stages of which the last is `tokens`, a count or a share: each twice the next."""
    budgets = [tokens * 2**number for number in reversed(range(stages))]
    return [min(1.0, share) for share in budgets] if isinstance(tokens, float) else budgets


def even(layers: int, stages: int) -> list[int]:
    """Where `stages` stages stand at equal distances in a decoder: 8, 16, 24 of 32. In one too shallow, fewer."""
    return sorted({max(1, (number + 1) * layers // (stages + 1)) for number in range(stages)})
