"""LLaVA-OneVision (`model_type` "llava_onevision"): tiles as in LLaVA-NeXT for one image, one view for each of several.

The views of several images, each with one newline, are as long as each other, so a run that is a multiple of that is
cut there, for images may stand side by side. A video is a run of its own id: pooled frames and one newline; videos with
nothing between them count as one.
"""

import torch

from coremat.models.llava_next import LlavaNextAdapter
from coremat.models.runs import Runs


class LlavaOnevisionAdapter(LlavaNextAdapter):
    takes_videos = True

    @property
    def pooled_frame(self) -> int:
        """Tokens of a video's frame: a view at half its height and width, rounded up."""
        return ((int(self.whole_view**0.5) + 1) // 2) ** 2

    def image_starts(self, runs: Runs) -> torch.Tensor:
        super().image_starts(runs)
        video, view, frame = runs.kinds == self.model.config.video_token_id, self.whole_view + 1, self.pooled_frame
        runs.refuse(video & (runs.lengths <= frame), f"more than {frame}, a video's frames and its newline")
        several = ~video & (runs.lengths % view == 0)
        return runs.cut(torch.where(several, view, runs.lengths))
