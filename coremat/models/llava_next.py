"""LLaVA-NeXT, or 1.6 (`model_type` "llava_next"): a whole view of the image, then its tiles with a newline per row.

How many tokens an image has depends on its shape, so an image is a run of placeholders; images with nothing between
them count as one (the chat templates put a line break there).
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import isqrt
from typing import Any

import torch
from torch.nn import functional

from coremat.models.adapter import clip_layers
from coremat.models.grids import Grid, Grids, Tile, given, view
from coremat.models.image_views import ImageViews
from coremat.models.resizable_towers import ResizableTower, clip_towers
from coremat.models.runs import Runs, RunsAdapter, square_patches


class LlavaNextAdapter(RunsAdapter):
    @property
    def whole_view(self) -> int:
        """Tokens of the view of the whole image, which stand before those of its tiles."""
        return square_patches(self.model.config.vision_config)

    @property
    def vision_layers(self) -> Any:
        return clip_layers(self.model)

    @property
    def feature_layer(self) -> int:
        return self.model.config.vision_feature_layer

    def image_pieces(self, inputs: Mapping[str, Any]) -> Iterator[Grids]:
        """The whole view, then the tiles as one rectangle, whose last column are the newlines."""
        for height, width in given(inputs, "image_sizes").tolist():
            rows, columns = self.tiled(height, width)
            yield (*view(self.whole_view), (rows, columns + 1))

    def tiled(self, height: int, width: int) -> Grid:
        """Rows and columns of patches of all tiles together, without padding, for an image of so many pixels."""
        rows, columns = self.patch_map(height, width).shape
        return rows, columns

    def patch_map(self, height: int, width: int) -> torch.Tensor:
        """int64 [rows, columns]: the patch behind each place of all tiles together, without padding, for an image of so
        many pixels: tile times patches of a tile, plus the patch in its tile."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

        config, side = self.model.config, isqrt(self.whole_view)
        rows, columns = get_anyres_image_grid_shape(
            (height, width), config.image_grid_pinpoints, config.vision_config.image_size
        )
        by_tile = torch.arange(rows * columns * side * side).view(rows, columns, side, side)
        return unpad_image(by_tile.transpose(1, 2).reshape(1, rows * side, columns * side), (height, width))[0]

    def tile_count(self, height: int, width: int) -> int:
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        config = self.model.config
        return (
            image_size_to_num_patches((height, width), config.image_grid_pinpoints, config.vision_config.image_size) - 1
        )

    def piece_tiles(self, inputs: Mapping[str, Any]) -> Iterator[tuple[Tile, ...]]:
        """The whole view and each tile. Newlines have no patch."""
        for height, width in given(inputs, "image_sizes").tolist():
            patches = self.patch_map(height, width)
            tiles = range(self.tile_count(height, width))
            yield Tile.whole(self.whole_view), *(self._tile(patches, number) for number in tiles)

    def _tile(self, patches: torch.Tensor, number: int) -> Tile:
        """One tile of a `patch_map`; without places where it is padding as a whole."""
        rows, columns = (patches // self.whole_view == number).nonzero(as_tuple=True)
        if not len(rows):
            return Tile(rows, columns, (), (Fraction(0),) * 4)
        (top, bottom), (left, right) = ((int(line.min()), int(line.max()) + 1) for line in (rows, columns))
        height, width = patches.shape
        return Tile(
            patches[rows, columns] % self.whole_view,
            self.whole_view + rows * (width + 1) + columns,
            ((bottom - top, right - left),),
            (Fraction(top, height), Fraction(left, width), Fraction(bottom, height), Fraction(right, width)),
        )

    @property
    def resizable_towers(self) -> Sequence[ResizableTower]:
        return clip_towers(self.model.config.vision_config, self.model.model.vision_tower)

    def image_views(self, grids: Sequence[Grids], inputs: Mapping[str, Any]) -> list[ImageViews]:
        """The whole view and the tiles; a newline stays where a token of its row does."""
        sizes = iter(given(inputs, "image_sizes").tolist() if grids else ())
        return [self._views([next(sizes) for _ in range(len(own) // 2)]) for own in grids]

    def _views(self, images: Sequence[tuple[int, int]]) -> ImageViews:
        """Of images (height, width) with nothing between them, which count as one."""
        places, overviews, views = [], [], 0
        for height, width in images:
            overviews.append(views)
            first = views * self.whole_view
            tiles = self.patch_map(height, width) + first + self.whole_view
            places += [torch.arange(first, first + self.whole_view), *functional.pad(tiles, (0, 1), value=-1)]
            views += 1 + self.tile_count(height, width)
        group = torch.arange(len(places)).repeat_interleave(torch.tensor([len(part) for part in places]))
        side = isqrt(self.whole_view)
        return ImageViews((side, side), views, torch.cat(places), group, tuple(overviews))

    def image_starts(self, runs: Runs) -> torch.Tensor:
        whole, image = self.whole_view, runs.kinds == self.model.config.image_token_id
        runs.refuse(image & (runs.lengths <= whole), f"more than {whole}, an image's whole view and its tiles")
        return runs.starts
