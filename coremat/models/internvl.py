"""InternVL as Hugging Face has it (`model_type` "internvl"): tiles of one size, one run for all of an image's.

Each image has a token before it and one behind it, which are text and stay. A video is a series of images to the model,
and to its adapter: one for each frame.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from math import prod
from typing import Any

import torch

from coremat.models.grids import Grid, Grids
from coremat.models.resizable_towers import PixelTower, ResizableTower
from coremat.models.runs import Runs, RunsAdapter


class InternVLAdapter(RunsAdapter):
    takes_videos = True

    @property
    def tile(self) -> Grid:
        """Rows and columns of one tile's tokens."""
        config = self.model.config
        (height, width), (tall, wide) = config.vision_config.image_size, config.vision_config.patch_size
        return int(height // tall * config.downsample_ratio), int(width // wide * config.downsample_ratio)

    @property
    def resizable_towers(self) -> Sequence[ResizableTower]:
        config = self.model.config
        merged = round(1 / config.downsample_ratio)
        return (PixelTower(self.vision[0], tuple(config.vision_config.patch_size), merged),)

    def image_pieces(self, inputs: Mapping[str, Any]) -> Iterable[Grids]:
        return repeat((self.tile,))

    def image_starts(self, runs: Runs) -> torch.Tensor:
        tile = prod(self.tile)
        runs.refuse(runs.lengths % tile != 0, f"a multiple of {tile}, the tokens of one tile")
        return runs.starts
