"""Models of text alone: Llama, Qwen2, Qwen3, Mistral and Gemma 3 (`model_type` "gemma3_text"), as AutoModelForCausalLM.

There are core neurons and no image tokens. Their decoders differ in nothing that choosing neurons asks of them, so one
adapter serves all. A sliding window, where there is one, is the model's own concern: neurons move no token.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from coremat.models.adapter import Adapter
from coremat.models.grids import Grids


class TextAdapter(Adapter):
    takes_images = False

    @property
    def core(self) -> Any:
        """The whole model: what is inside of it is the decoder itself, which decode steps of a fixed shape call too."""
        return self.model

    @property
    def tokens_unsupported(self) -> str:
        return f"{type(self.model).__name__} has no image tokens; accepted: methods of neurons alone, dense."

    @property
    def window(self) -> int | None:
        config = self.decoder.config
        kinds = getattr(config, "layer_types", None)  # where no layer has a kind, all have the window
        has_one = kinds is None or "sliding_attention" in kinds
        return getattr(config, "sliding_window", None) if has_one else None

    @property
    def vision(self) -> tuple[Any, ...]:
        return ()

    def visual_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(input_ids, dtype=torch.bool)

    def visual_index(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.full_like(input_ids, -1)

    def image_grids(self, input_ids: torch.Tensor, inputs: Mapping[str, Any]) -> list[Grids]:
        return []

    def image_pieces(self, inputs: Mapping[str, Any]) -> Iterable[Grids]:
        return ()
