"""LLaVA-OneVision (`model_type` "llava_onevision"): tiles as in LLaVA-NeXT for one image, one view for each of several.

The views of several images, each with one newline, are as long as each other, so a run that is a multiple of that is
cut there, for images may stand side by side. A video is a run of its own id: pooled frames and one newline; videos with
nothing between them count as one.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from math import sqrt
from typing import Any

import torch

from coremat.models.grids import ONE_TOKEN, Grid, Grids, given, view
from coremat.models.llava_next import LlavaNextAdapter
from coremat.models.resizable_towers import ResizableTower
from coremat.models.runs import Runs


class LlavaOnevisionAdapter(LlavaNextAdapter):
    takes_videos = True
    vision_layers = None  # views are resized behind the projector, so that a token has no patch of its own

    @property
    def resizable_towers(self) -> Sequence[ResizableTower]:
        """None: many tiles, and the frames of videos, are scaled down behind the tower, each place from several."""
        return ()

    @property
    def pooled_frame(self) -> int:
        """Tokens of a video's frame: a view at half its height and width, rounded up."""
        return ((int(self.whole_view**0.5) + 1) // 2) ** 2

    def image_pieces(self, inputs: Mapping[str, Any]) -> Iterator[Grids]:
        """An image that has its prompt to itself is tiled; of each of several there is a view and a newline."""
        tiled = super().image_pieces(inputs)
        counts = inputs.get("batch_num_images")
        if counts is None:  # then the model takes each image for the only one
            yield from tiled
            return
        alone = [count == 1 for count in map(int, counts) for _ in range(count)]
        for piece, one in zip(tiled, alone, strict=False):
            yield piece if one else (*view(self.whole_view), ONE_TOKEN)

    def tiled(self, height: int, width: int) -> Grid:
        """Tiles that are more than `vision_aspect_ratio` allows ("anyres_max_9": nine) are made smaller."""
        rows, columns = super().tiled(height, width)
        most = int(self.model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = sqrt(rows * columns / (most * self.whole_view))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)

    def video_pieces(self, inputs: Mapping[str, Any]) -> Iterator[Grids]:
        videos, frames = given(inputs, "pixel_values_videos").shape[:2]
        yield from repeat((*view(self.pooled_frame) * frames, ONE_TOKEN), videos)

    def image_starts(self, runs: Runs) -> torch.Tensor:
        super().image_starts(runs)
        video, view, frame = runs.kinds == self.model.config.video_token_id, self.whole_view + 1, self.pooled_frame
        runs.refuse(video & (runs.lengths <= frame), f"more than {frame}, a video's frames and its newline")
        several = ~video & (runs.lengths % view == 0)
        return runs.cut(torch.where(several, view, runs.lengths))
