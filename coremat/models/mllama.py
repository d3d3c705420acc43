"""Llama 3.2 Vision (`model_type` "mllama"): the text never holds the image, cross-attention layers look at it.

So there are core neurons, in the FFNs of self- and cross-attention layers, and no core tokens (paper, appendix E.2). A
prompt without an image skips the cross-attention layers, whose FFNs then stay as they are.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from coremat.models.adapter import Adapter, refuse_sliding_layers
from coremat.models.grids import Grids


class MllamaAdapter(Adapter):
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        refuse_sliding_layers(self.decoder.config)

    @property
    def tokens_unsupported(self) -> str:
        return (
            f"{type(self.model).__name__} looks at images by cross-attention, so no image token passes through an FFN "
            "of its text model whose activations could rank it (paper, appendix E.2); accepted: methods of neurons "
            "alone, dense."
        )

    @property
    def vision(self) -> tuple[Any, Any]:
        return self.model.model.vision_model, self.model.model.multi_modal_projector

    def visual_index(self, input_ids: torch.Tensor) -> torch.Tensor:
        """No token is a piece of an image: the one placeholder per image only says from where on it is seen."""
        return torch.full_like(input_ids, -1)

    def image_pieces(self, inputs: Mapping[str, Any]) -> Iterable[Grids]:
        return ()

    def caches_text(self, layer: Any) -> bool:
        return not hasattr(layer, "cross_attn")
