"""Families whose images are told apart by the runs of their placeholders: tiles and newlines make images uneven.

A run is a stretch of one placeholder id, an image's or a video's. The vectors that a family puts between the rows of
its tiles (newlines) stand on placeholders and belong to the image; separators that are tokens of their own are text.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from coremat.errors import DataError
from coremat.models.adapter import Adapter, refuse_window


@dataclass(frozen=True)
class Runs:
    """ids: int64 [B, S]; visual, starts: bool [B, S], placeholders and the first of each run, all on the CPU.

    kinds, lengths: int64 [R], placeholder id and length of each run, row by row from the left.
    """

    ids: torch.Tensor
    visual: torch.Tensor
    starts: torch.Tensor
    kinds: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of(cls, ids: torch.Tensor, visual: torch.Tensor) -> "Runs":
        changes = ids[:, 1:] != ids[:, :-1]
        edge = torch.ones_like(visual[:, :1])
        starts = visual & torch.cat([edge, changes], 1)
        ends = visual & torch.cat([changes, edge], 1)
        lengths = ends.nonzero()[:, 1] - starts.nonzero()[:, 1] + 1
        return cls(ids, visual, starts, ids[starts], lengths)

    def cut(self, sizes: torch.Tensor) -> torch.Tensor:
        """bool [B, S]: where a piece starts, if each run is cut into pieces of its own of the `sizes` [R]."""
        before = self.lengths.cumsum(0) - self.lengths
        offset = torch.arange(int(self.lengths.sum())) - before.repeat_interleave(self.lengths)
        starts = torch.zeros_like(self.visual)
        starts[self.visual] = offset % sizes.repeat_interleave(self.lengths) == 0
        return starts

    def refuse(self, wrong: torch.Tensor, accepted: str) -> None:
        """DataError for the first run that is `wrong`, bool [R]."""
        if wrong.any():
            raise DataError(f"a prompt has a run of {int(self.lengths[wrong][0])} image tokens; accepted: {accepted}.")


class RunsAdapter(Adapter):
    """What these families share. A subclass says with `image_starts` where images start, and refuses runs that no
    image of its family has."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        refuse_window(getattr(self.decoder.config, "sliding_window", None))

    @property
    def vision(self) -> tuple[Any, Any]:
        return self.model.model.vision_tower, self.model.model.multi_modal_projector

    def visual_index(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Which image or video of its sequence each token belongs to, in the order of the prompt; -1 for text."""
        ids = input_ids.cpu()
        runs = Runs.of(ids, self.visual_tokens(ids))
        index = torch.where(runs.visual, self.image_starts(runs).cumsum(1) - 1, -1)
        return index.to(input_ids.device)

    @abstractmethod
    def image_starts(self, runs: Runs) -> torch.Tensor:
        """bool [B, S]: the first token of every image and video. DataError for runs that cannot be images."""


def square_patches(vision: Any) -> int:
    """Patches of one view of a square tower, from its config."""
    return (vision.image_size // vision.patch_size) ** 2
