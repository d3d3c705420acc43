"""LLaVA-NeXT, or 1.6 (`model_type` "llava_next"): a whole view of the image, then its tiles with a newline per row.

How many tokens an image has depends on its shape, so an image is a run of placeholders; images with nothing between
them count as one (the chat templates put a line break there).
"""

import torch

from coremat.models.runs import Runs, RunsAdapter, square_patches


class LlavaNextAdapter(RunsAdapter):
    @property
    def whole_view(self) -> int:
        """Tokens of the view of the whole image, which stand before those of its tiles."""
        return square_patches(self.model.config.vision_config)

    def image_starts(self, runs: Runs) -> torch.Tensor:
        whole, image = self.whole_view, runs.kinds == self.model.config.image_token_id
        runs.refuse(image & (runs.lengths <= whole), f"more than {whole}, an image's whole view and its tiles")
        return runs.starts
