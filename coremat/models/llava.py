"""LLaVA-1.5 (`model_type` "llava"): CLIP tower, MLP projector, a Llama-like decoder; every image has as many tokens."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

from coremat.models.adapter import Adapter, clip_layers, refuse_window
from coremat.models.grids import Grids, Tile, view
from coremat.models.resizable_towers import ResizableTower, clip_towers


class LlavaAdapter(Adapter):
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        refuse_window(getattr(self.decoder.config, "sliding_window", None))

    @property
    def vision(self) -> tuple[Any, Any]:
        return self.model.model.vision_tower, self.model.model.multi_modal_projector

    @property
    def vision_layers(self) -> Any:
        return clip_layers(self.model)

    @property
    def resizable_towers(self) -> Sequence[ResizableTower]:
        return clip_towers(self.model.config.vision_config, self.model.model.vision_tower)

    @property
    def feature_layer(self) -> int:
        return self.model.config.vision_feature_layer

    @property
    def image_tokens(self) -> int:
        """Image tokens per image, from the tower's geometry."""
        config = self.model.config
        vision = config.vision_config
        if not hasattr(vision, "patch_size"):
            return config.image_seq_length
        patches = (vision.image_size // vision.patch_size) ** 2
        return patches + (config.vision_feature_select_strategy == "full")

    def image_pieces(self, inputs: Mapping[str, Any]) -> Iterable[Grids]:
        return repeat(view(self.image_tokens))

    def piece_tiles(self, inputs: Mapping[str, Any]) -> Iterable[tuple[Tile, ...]]:
        return repeat((Tile.whole(self.image_tokens),))
