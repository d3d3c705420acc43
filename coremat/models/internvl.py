"""InternVL as Hugging Face has it (`model_type` "internvl"): tiles of one size, one run for all of an image's.

Each image has a token before it and one behind it, which are text and stay. A video is a series of images to the model,
and to its adapter: one for each frame.
"""

import torch

from coremat.models.runs import Runs, RunsAdapter


class InternVLAdapter(RunsAdapter):
    takes_videos = True

    @property
    def tile_tokens(self) -> int:
        config = self.model.config
        (height, width), (tall, wide) = config.vision_config.image_size, config.vision_config.patch_size
        return int((height // tall) * (width // wide) * config.downsample_ratio**2)

    def image_starts(self, runs: Runs) -> torch.Tensor:
        tile = self.tile_tokens
        runs.refuse(runs.lengths % tile != 0, f"a multiple of {tile}, the tokens of one tile")
        return runs.starts
