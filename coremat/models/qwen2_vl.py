"""Qwen2-VL (`model_type` "qwen2_vl"): as many tokens as the image has pixels, positions of three axes (M-RoPE).

An image, or a video, is what lies between one start and one end mark: one run of its placeholder. Positions go on from
the full length by themselves: they are counted once per prompt, and the three axes are merged before the layers.
"""

from typing import Any

from coremat.models.adapter import Adapter, refuse_sliding_layers


class Qwen2VLAdapter(Adapter):
    takes_videos = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        refuse_sliding_layers(self.decoder.config)

    @property
    def vision(self) -> tuple[Any, Any]:
        tower = self.model.model.visual
        return tower, tower.merger

    @property
    def plain_positions(self) -> bool:
        return False
