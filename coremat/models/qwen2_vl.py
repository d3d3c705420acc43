"""Qwen2-VL (`model_type` "qwen2_vl"): as many tokens as the image has pixels, positions of three axes (M-RoPE).

An image, or a video, is what lies between one start and one end mark: one run of its placeholder. Positions go on from
the full length by themselves: they are counted once per prompt, and the three axes are merged before the layers.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from coremat.models.adapter import Adapter, refuse_sliding_layers
from coremat.models.grids import Grids, given
from coremat.models.resizable_towers import PatchTower, ResizableTower


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
    def resizable_towers(self) -> Sequence[ResizableTower]:
        vision = self.model.config.vision_config
        patch = (vision.patch_size,) * 2
        return (PatchTower(self.vision[0], patch, vision.spatial_merge_size, vision.temporal_patch_size),)

    @property
    def plain_positions(self) -> bool:
        return False

    def image_pieces(self, inputs: Mapping[str, Any]) -> Iterable[Grids]:
        return self._merged(inputs, "image_grid_thw")

    def video_pieces(self, inputs: Mapping[str, Any]) -> Iterable[Grids]:
        return self._merged(inputs, "video_grid_thw")

    def _merged(self, inputs: Mapping[str, Any], name: str) -> Iterator[Grids]:
        """One rectangle per frame (pair of frames); a token is a square of patches, which the merger makes one."""
        side = self.model.config.vision_config.spatial_merge_size
        for frames, rows, columns in given(inputs, name).tolist():
            yield ((rows // side, columns // side),) * frames
