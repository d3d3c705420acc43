"""LLaVA-1.5 (`model_type` "llava"): CLIP tower, MLP projector, a Llama-like decoder; every image has as many tokens."""

from typing import Any

import torch

from coremat.errors import DataError, UnsupportedError
from coremat.models.adapter import Adapter, rotate_half_query


class LlavaAdapter(Adapter):
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        window = getattr(self.decoder.config, "sliding_window", None)
        if window is not None:
            raise UnsupportedError(
                f"the text model has a sliding window of {window}; only full attention is supported."
            )

    @property
    def vision(self) -> tuple[Any, Any]:
        return self.model.model.vision_tower, self.model.model.multi_modal_projector

    @property
    def image_tokens(self) -> int:
        """Image tokens per image, from the tower's geometry."""
        config = self.model.config
        vision = config.vision_config
        if not hasattr(vision, "patch_size"):
            return config.image_seq_length
        patches = (vision.image_size // vision.patch_size) ** 2
        return patches + (config.vision_feature_select_strategy == "full")

    def visual_index(self, input_ids: torch.Tensor) -> torch.Tensor:
        visual = self.visual_tokens(input_ids)
        counts = visual.sum(1)
        if (counts % self.image_tokens).any():
            raise DataError(
                f"a prompt has {int(counts[counts % self.image_tokens > 0][0])} image tokens; "
                f"accepted: a multiple of {self.image_tokens}, the tokens of one image."
            )
        return torch.where(visual, (visual.cumsum(1) - 1) // self.image_tokens, -1)

    def last_query(self, layer: Any, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return rotate_half_query(layer, hidden, rotary)
