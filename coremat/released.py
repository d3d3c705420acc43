"""What the authors' released code does, which is not what the paper says: a method of its own, for comparison.

In decoder layers 5 to 18, after the prefill's attention, it counts for every image token the neurons that it shares
with one text token, the fifth from the end, and writes zeros into that layer's cached keys and values of all image
tokens that are not strictly above the knee of the counts. Nothing gets shorter, a zeroed key still takes part in the
softmax, and the first new token is the dense model's. There are no core neurons in it.

The release builds in batch 1 and one image at fixed places; here images are where they are, in every sequence.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from coremat.core_neurons import activated, count_true
from coremat.core_tokens import knee
from coremat.errors import UnsupportedError
from coremat.models import Adapter
from coremat.prompt import Prompt

LAYERS = range(5, 19)
REFERENCE = -5  # the token that all are compared with


def above(counts: torch.Tensor) -> torch.Tensor:
    """Which of one sequence's image tokens the release leaves: bool [n], from counts [n]; strictly above the knee."""
    descending = counts.sort(descending=True).values
    return counts > descending[knee(descending)]


class Release:
    """The hooks of one model; `prompt` is the one that is being read, None while decoding."""

    def __init__(self, adapter: Adapter) -> None:
        if len(adapter.layers) <= LAYERS.start:
            raise UnsupportedError(
                f"the released code works in decoder layers {LAYERS.start} to {LAYERS.stop - 1}, and this model has "
                f"{len(adapter.layers)} layers; accepted: a deeper model."
            )
        self.adapter = adapter
        self.prompt: Prompt | None = None
        self._shared = torch.empty(0)

    def install(self, undo: ExitStack) -> None:
        for number in LAYERS:
            if number >= len(self.adapter.layers):
                return
            layer = self.adapter.layers[number]
            down = self.adapter.ffn(layer).down_proj
            undo.callback(down.register_forward_pre_hook(self._count).remove)
            undo.callback(layer.register_forward_hook(self._zero(number), with_kwargs=True).remove)

    def _count(self, module: nn.Module, args: tuple) -> None:
        if self.prompt is not None:
            own = activated(args[0].detach())
            self._shared = count_true(own & own[:, [max(REFERENCE, -own.shape[1])]])

    def _zero(self, number: int) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if self.prompt is None:
                return
            cached = kwargs["past_key_values"].layers[number]
            for row, visual in enumerate(self.prompt.visual):
                image = (visual >= 0).nonzero()[:, 0]
                if len(image):
                    gone = image[~above(self._shared[row, image])]
                    cached.keys[row, :, gone] = 0
                    cached.values[row, :, gone] = 0

        return hook
