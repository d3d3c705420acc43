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
from coremat.methods.options import EarlierCache, Layer, Positions, Share
from coremat.methods.views import LayerView


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Method):
    """layers: decoder layers that have run before each stage (typed 8/16/24), by default equal parts of the depth.
    ratios: shares of the prompt's image tokens that are left behind each."""

    name: ClassVar[str] = "pyramiddrop"
    summary: ClassVar[str] = "PyramidDrop: image tokens leave in three stages, by the attention of the layer to come"
    paper: ClassVar[str] = "Xing et al., CVPR 2025 (arXiv 2410.17247)"
    departures: ClassVar[str] = "stages at quarters of the depth where no layers are given"

    layers: tuple[Layer, ...] | None = None
    ratios: tuple[Share, ...] = (0.5, 0.25, 0.125)
    positions: Positions = "auto"
    earlier_cache: EarlierCache = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and len(self.layers) != len(self.ratios):
            raise ConfigError(
                f"layers is {self.layers!r} beside {len(self.ratios)} ratios; accepted: as many layers as ratios."
            )

    def stages(self, layers: int) -> Sequence[Stage]:
        pairs = zip(self.layers or even(layers, len(self.ratios)), self.ratios, strict=False)
        return tuple(Stage(after, ratio, self.positions, self.earlier_cache) for after, ratio in pairs)

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return layer.next_attention.mean((1, 2))


def even(layers: int, stages: int) -> list[int]:
    """Where `stages` stages stand at equal distances in a decoder: 8, 16, 24 of 32. In one too shallow, fewer."""
    return sorted({max(1, (number + 1) * layers // (stages + 1)) for number in range(stages)})
