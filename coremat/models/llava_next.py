"""LLaVA-NeXT, or 1.6 (`model_type` "llava_next"): a whole view of the image, then its tiles with a newline per row.

How many tokens an image has depends on its shape, so an image is a run of placeholders; images with nothing between
them count as one (the chat templates put a line break there).
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch.nn import functional

from coremat.models.grids import Grid, Grids, given, view
from coremat.models.image_views import ImageViews
from coremat.models.resizable_towers import ResizableTower, clip_towers
from coremat.models.runs import Runs, RunsAdapter, square_patches


class LlavaNextAdapter(RunsAdapter):
    @property
    def whole_view(self) -> int:
        """Tokens of the view of the whole image, which stand before those of its tiles."""
        return square_patches(self.model.config.vision_config)

    def image_pieces(self, inputs: Mapping[str, Any]) -> Iterator[Grids]:
        """The whole view, then the tiles as one rectangle, whose last column are the newlines."""
        for height, width in given(inputs, "image_sizes").tolist():
            rows, columns = self.tiled(height, width)
            yield (*view(self.whole_view), (rows, columns + 1))

    def tiled(self, height: int, width: int) -> Grid:
        """Rows and columns of patches of all tiles together, without padding, for an image of so many pixels."""
        side, (rows, columns) = isqrt(self.whole_view), self.tiles(height, width)
        tall, wide = self.unpadded(torch.empty(rows * side, columns * side), height, width).shape
        return tall, wide

    def tiles(self, height: int, width: int) -> Grid:
        """Rows and columns of the tiles of an image of so many pixels."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

        config = self.model.config
        return get_anyres_image_grid_shape(
            (height, width), config.image_grid_pinpoints, config.vision_config.image_size
        )

    def unpadded(self, patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """[rows, columns] of all tiles together, without what pads an image of so many pixels."""
        from transformers.models.llava_next.modeling_llava_next import unpad_image

        return unpad_image(patches[None], (height, width))[0]

    @property
    def resizable_towers(self) -> Sequence[ResizableTower]:
        return clip_towers(self.model.config.vision_config, self.model.model.vision_tower)

    def image_views(self, grids: Sequence[Grids], inputs: Mapping[str, Any]) -> list[ImageViews]:
        """The whole view and the tiles; a newline stays where a token of its row does."""
        sizes = iter(given(inputs, "image_sizes").tolist() if grids else ())
        return [self._views([next(sizes) for _ in range(len(own) // 2)]) for own in grids]

    def _views(self, images: Sequence[tuple[int, int]]) -> ImageViews:
        """Of images (height, width) with nothing between them, which count as one."""
        side, views = isqrt(self.whole_view), 0
        shown, overviews = [], []
        for height, width in images:
            rows, columns = self.tiles(height, width)
            own = torch.arange((1 + rows * columns) * side**2).view(-1, side, side) + views * side**2
            tiles = own[1:].view(rows, columns, side, side).transpose(1, 2).reshape(rows * side, columns * side)
            shown += [own[0].flatten(), *functional.pad(self.unpadded(tiles, height, width), (0, 1), value=-1)]
            overviews.append(views)
            views += 1 + rows * columns
        group = torch.arange(len(shown)).repeat_interleave(torch.tensor([len(part) for part in shown]))
        return ImageViews((side, side), views, torch.cat(shown), group, tuple(overviews))

    def image_starts(self, runs: Runs) -> torch.Tensor:
        whole, image = self.whole_view, runs.kinds == self.model.config.image_token_id
        runs.refuse(image & (runs.lengths <= whole), f"more than {whole}, an image's whole view and its tiles")
        return runs.starts
