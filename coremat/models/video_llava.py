"""Video-LLaVA (`model_type` "video_llava"): an image tower and a video tower with weights of their own, one projector.

An image has as many tokens as patches, so images with nothing between them are told apart. A video's frames keep their
class token; how many frames a video has only its run tells (the released model was trained with 8), so videos with
nothing between them count as one.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import torch

from coremat.models.grids import Grids, view
from coremat.models.resizable_towers import ResizableTower, clip_towers
from coremat.models.runs import Runs, RunsAdapter, square_patches


class Towers:
    """Both towers as one, for hooks: an image passes through the one, a video through the other."""

    def __init__(self, *towers: Any) -> None:
        self.towers = towers

    def register_forward_pre_hook(self, hook: Any) -> "Handles":
        return Handles([tower.register_forward_pre_hook(hook) for tower in self.towers])

    def register_forward_hook(self, hook: Any) -> "Handles":
        return Handles([tower.register_forward_hook(hook) for tower in self.towers])


class Handles:
    """What hooks on several modules returned, to be removed together."""

    def __init__(self, handles: list[Any]) -> None:
        self.handles = handles

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


class VideoLlavaAdapter(RunsAdapter):
    takes_videos = True

    @property
    def vision(self) -> tuple[Any, Any]:
        inner = self.model.model
        return Towers(inner.image_tower, inner.video_tower), inner.multi_modal_projector

    @property
    def resizable_towers(self) -> Sequence[ResizableTower]:
        return clip_towers(self.model.config.vision_config, *self.vision[0].towers)

    @property
    def image_tokens(self) -> int:
        """Of an image; a video has more."""
        config = self.model.config
        return square_patches(config.vision_config) + (config.vision_feature_select_strategy == "full")

    @property
    def frame_tokens(self) -> int:
        """Of a video's frame."""
        return square_patches(self.model.config.vision_config) + 1

    def image_pieces(self, inputs: Mapping[str, Any]) -> Iterable[Grids]:
        return repeat(view(self.image_tokens))

    def video_pieces(self, inputs: Mapping[str, Any]) -> Iterable[Grids]:
        return repeat(view(self.frame_tokens))

    def image_starts(self, runs: Runs) -> torch.Tensor:
        image, frame = self.image_tokens, self.frame_tokens
        video = runs.kinds == self.model.config.video_token_id
        runs.refuse(~video & (runs.lengths % image != 0), f"a multiple of {image}, the tokens of one image")
        runs.refuse(video & (runs.lengths % frame != 0), f"a multiple of {frame}, the tokens of a video's frame")
        return runs.cut(torch.where(video, runs.lengths, image))
