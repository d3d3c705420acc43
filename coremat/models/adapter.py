"""What the rest of coremat may know of a model family. One subclass per family, in the file of its `model_type`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from coremat.errors import UnsupportedError
from coremat.flops import DecoderShape

FFN_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")


class Adapter(ABC):
    """Where things are in one model. Refuses, when made, a model that is not shaped as its family should be."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._check_layers()

    @property
    def decoder(self) -> Any:
        """The module that runs the loop over decoder layers."""
        return self.model.get_decoder()

    @property
    def layers(self) -> Sequence[Any]:
        return self.decoder.layers

    def ffn(self, layer: Any) -> Any:
        """The gated FFN of a layer: `gate_proj`, `up_proj`, `down_proj` and `act_fn`."""
        return layer.mlp

    def _check_layers(self) -> None:
        for number, layer in enumerate(self.layers):
            missing = [part for part in FFN_PARTS if not hasattr(getattr(layer, "mlp", None), part)]
            if missing:
                raise UnsupportedError(
                    f"layer {number} of {type(self.model).__name__} ({type(self.decoder).__name__}) has no "
                    f"{', '.join(missing)} in its mlp; a gated FFN with {', '.join(FFN_PARTS)} is needed."
                )

    @property
    @abstractmethod
    def vision(self) -> tuple[Any, Any]:
        """The modules between an image and its tokens: the vision tower, and the projector, which runs last."""

    def visual_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        """bool [B, S]: which tokens stand for a piece of an image."""
        return input_ids == self.model.config.image_token_id

    @abstractmethod
    def visual_index(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Which image of its sequence each token belongs to: int64 [B, S], -1 for text and padding."""

    @abstractmethod
    def last_query(self, layer: Any, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The rotated query of the last token [B, heads, d], from the layer's attention input [B, S, H]."""

    def scaling(self, layer: Any) -> float:
        return layer.self_attn.scaling

    def output_projection(self, layer: Any) -> torch.Tensor:
        """W_O [H, heads * d]."""
        return layer.self_attn.o_proj.weight

    @property
    def image_tokens(self) -> int | None:
        """Tokens of every image, row by row over a square; None where that differs from image to image."""
        return None

    @property
    def shape(self) -> DecoderShape:
        return DecoderShape.of(self.decoder.config)


def rotate_half_query(layer: Any, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The last token's query with Llama's rotary embedding (halves swapped): shared by the families that use it."""
    attention = layer.self_attn
    query = attention.q_proj(hidden[:, -1:]).unflatten(-1, (-1, attention.head_dim))[:, 0]
    cos, sin = (part[:, -1:].to(query.dtype) for part in rotary)
    first, second = query.chunk(2, dim=-1)
    return query * cos + torch.cat((-second, first), dim=-1) * sin
