"""Gemma 3 (`model_type` "gemma3"): GELU FFN, as many tokens for every image, which see each other both ways, and five
layers with a sliding window for each that sees all.

Pruned prompts count their window in columns that are left, so tokens are pruned only while nothing reaches beyond it.
"""

from typing import Any

from coremat.models.adapter import Adapter


class Gemma3Adapter(Adapter):
    @property
    def vision(self) -> tuple[Any, Any]:
        return self.model.model.vision_tower, self.model.model.multi_modal_projector

    @property
    def image_tokens(self) -> int:
        return self.model.config.mm_tokens_per_image

    @property
    def window(self) -> int | None:
        config = self.decoder.config
        return config.sliding_window if "sliding_attention" in config.layer_types else None
