"""Qwen3-VL (`model_type` "qwen3_vl"): Qwen2-VL's places, and DeepStack: after each of the first layers the decoder adds
features of the vision tower to the image tokens. Every frame (pair of frames) of a video is an image of its own, for
time stamps stand between them.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from coremat.models.qwen2_vl import Qwen2VLAdapter
from coremat.short_cache import take
from coremat.undo import replace_method


class Qwen3VLAdapter(Qwen2VLAdapter):
    @contextmanager
    def narrowing(self, held: Callable[[], torch.Tensor | None]) -> Iterator[None]:
        """Tokens that stay get their features also where others have left before the last features are added."""
        decoder = self.decoder
        whole = decoder._deepstack_process

        def add(hidden: torch.Tensor, visual: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
            columns = held()
            if columns is None:
                return whole(hidden, visual, features)
            placed = hidden.new_zeros(*visual.shape, hidden.shape[-1])
            placed[visual.to(hidden.device)] = features.to(hidden.device, hidden.dtype)
            return hidden + take(placed, columns, 1)

        with ExitStack() as undo:
            replace_method(decoder, "_deepstack_process", add, undo)
            yield
