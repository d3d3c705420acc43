"""Idefics3 (`model_type` "idefics3"): a run of placeholders for each tile, under a header that says which tile it is.

Headers, line breaks and the fence before each header are text and stay. A fence also closes each image, behind its last
tile; so between two tiles of an image there is one, and between the last of one image and the first of the next two.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import torch

from coremat.models.grids import Grids, view
from coremat.models.resizable_towers import PixelTower, ResizableTower
from coremat.models.runs import Runs, RunsAdapter, square_patches


class Idefics3Adapter(RunsAdapter):
    @property
    def vision(self) -> tuple[Any, Any]:
        return self.model.model.vision_model, self.model.model.connector

    @property
    def resizable_towers(self) -> Sequence[ResizableTower]:
        config = self.model.config
        return (PixelTower(self.vision[0], (config.vision_config.patch_size,) * 2, config.scale_factor),)

    @property
    def tile_tokens(self) -> int:
        config = self.model.config
        return square_patches(config.vision_config) // config.scale_factor**2

    def image_pieces(self, inputs: Mapping[str, Any]) -> Iterable[Grids]:
        return repeat(view(self.tile_tokens))

    def image_starts(self, runs: Runs) -> torch.Tensor:
        tile = self.tile_tokens
        runs.refuse(runs.lengths % tile != 0, f"a multiple of {tile}, the tokens of one tile")
        starts = torch.zeros_like(runs.starts)
        for row, tiles in enumerate(runs.starts):
            begins = tiles.nonzero()[:, 0]
            starts[row, begins[_opens_image(runs.ids[row], runs.visual[row], begins)]] = True
        return starts


def _opens_image(ids: torch.Tensor, visual: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
    """One row: which of the tiles that begin at `begins` are the first of their image, bool [tiles]."""
    if not len(begins):
        return begins.bool()
    behind_last = int(visual.nonzero()[-1, 0]) + 1
    fences = (ids == ids[min(behind_last, len(ids) - 1)]).cumsum(0)[begins]
    return torch.cat([torch.ones(1, dtype=torch.bool), fences.diff() > 1])
