"""Gemma 3 (`model_type` "gemma3"): GELU FFN, as many tokens for every image, which see each other both ways, and five
layers with a sliding window for each that sees all.

Pruned prompts count their window in columns that are left, so tokens are pruned only while nothing reaches beyond it.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from math import isqrt
from typing import Any

import torch

from coremat.models.adapter import Adapter, Rotary
from coremat.models.grids import Grids, view
from coremat.models.resizable_towers import PixelTower, ResizableTower


class Gemma3Adapter(Adapter):
    @property
    def vision(self) -> tuple[Any, Any]:
        return self.model.model.vision_tower, self.model.model.multi_modal_projector

    @property
    def resizable_towers(self) -> Sequence[ResizableTower]:
        """A token is the mean of a square of patches."""
        vision = self.model.config.vision_config
        merged = vision.image_size // vision.patch_size // isqrt(self.image_tokens)
        return (PixelTower(self.vision[0], (vision.patch_size,) * 2, merged, interpolate_pos_encoding=True),)

    @property
    def image_tokens(self) -> int:
        return self.model.config.mm_tokens_per_image

    def image_pieces(self, inputs: Mapping[str, Any]) -> Iterable[Grids]:
        return repeat(view(self.image_tokens))

    @property
    def window(self) -> int | None:
        config = self.decoder.config
        return config.sliding_window if "sliding_attention" in config.layer_types else None

    def rotary(self, layer: Any, hidden: torch.Tensor, positions: torch.Tensor) -> Rotary:
        """Layers with a window turn at another rate than those that see all."""
        return self.decoder.rotary_emb(hidden, positions, self.rotary_kind(layer))

    def rotary_kind(self, layer: Any) -> str:
        return layer.self_attn.layer_type
