"""Qwen3-VL (`model_type` "qwen3_vl"): Qwen2-VL's places, and DeepStack: after each of the first layers the decoder adds
features of the vision tower to the image tokens. Every frame (pair of frames) of a video is an image of its own, for
time stamps stand between them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from coremat.hooks import Hooks
from coremat.models.grids import Grids
from coremat.models.qwen2_vl import Qwen2VLAdapter
from coremat.tensors import take


class Qwen3VLAdapter(Qwen2VLAdapter):
    def video_pieces(self, inputs: Mapping[str, Any]) -> Iterator[Grids]:
        return ((frame,) for video in super().video_pieces(inputs) for frame in video)

    def narrow_additions(self, hooks: Hooks, kept: Callable[[], torch.Tensor | None]) -> None:
        """Tokens that stay get their features also where others have left before the last features are added."""
        whole = self.decoder._deepstack_process

        def add(hidden: torch.Tensor, visual: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
            columns = kept()
            if columns is None:
                return whole(hidden, visual, features)
            placed = hidden.new_zeros(*visual.shape, hidden.shape[-1])
            placed[visual.to(hidden.device)] = features.to(hidden.device, hidden.dtype)
            return hidden + take(placed, columns, 1)

        hooks.replace(self.decoder, "_deepstack_process", add)
