"""LLaVA-NeXT, or 1.6 (`model_type` "llava_next"): a whole view of the image, then its tiles with a newline per row.

How many tokens an image has depends on its shape, so an image is a run of placeholders; images with nothing between
them count as one (the chat templates put a line break there).
"""

from collections.abc import Iterator, Mapping
from math import isqrt
from typing import Any

import torch

from coremat.models.grids import Grid, Grids, given, view
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
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

        config, side = self.model.config, isqrt(self.whole_view)
        rows, columns = get_anyres_image_grid_shape(
            (height, width), config.image_grid_pinpoints, config.vision_config.image_size
        )
        return unpad_image(torch.empty(1, rows * side, columns * side), (height, width)).shape[1:]

    def image_starts(self, runs: Runs) -> torch.Tensor:
        whole, image = self.whole_view, runs.kinds == self.model.config.image_token_id
        runs.refuse(image & (runs.lengths <= whole), f"more than {whole}, an image's whole view and its tiles")
        return runs.starts
