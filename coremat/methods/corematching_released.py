"""What the authors' released code does, which is not what the paper says: a method of its own, for comparison.

In decoder layers 5 to 18, after the prefill's attention, it counts for every image token the neurons that it shares
with one text token, the fifth from the end, and writes zeros into that layer's cached keys and values of all image
tokens that are not strictly above the knee of the counts. Nothing gets shorter, a zeroed key still takes part in the
softmax, and the first new token is the dense model's. There are no core neurons in it.

Departures: the release builds in batch 1 and one image at fixed places; here images are where they are, in every
sequence.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from coremat.errors import UnsupportedError
from coremat.methods.base import Method
from coremat.methods.common.knee import knee
from coremat.methods.corematching.bits import activated, count_true
from coremat.methods.views import LayerView

LAYERS = range(5, 19)
REFERENCE = -5  # the token that all are compared with


@dataclass(frozen=True, kw_only=True)
class CoreMatchingReleased(Method):
    name: ClassVar[str] = "corematching-released"
    summary: ClassVar[str] = (
        "what the authors' released code does: zeros in the caches of layers 5 to 18; nothing gets shorter"
    )
    paper: ClassVar[str] = "the code released with CoreMatching (ICML 2025)"
    departures: ClassVar[str] = "any batch, and images wherever they are"

    def setup(self, model: Any) -> None:
        layers = len(model.get_decoder().layers)
        if layers <= LAYERS.start:
            raise UnsupportedError(
                f"the released code works in decoder layers {LAYERS.start} to {LAYERS.stop - 1}, and this model has "
                f"{layers} layers; accepted: a deeper model."
            )

    def edit_cache(self, layer: LayerView) -> None:
        if layer.number not in LAYERS:
            return
        shared = shared_neurons(layer.activations)
        for row, image in enumerate(layer.image):
            own = image.nonzero()[:, 0]
            if len(own):
                gone = own[~above(shared[row, own])]
                layer.keys[row, :, gone] = 0
                layer.values[row, :, gone] = 0


def shared_neurons(activations: torch.Tensor) -> torch.Tensor:
    """How many neurons each token activates together with the reference token: int64 [B, T], from [B, T, F]."""
    own = activated(activations)
    return count_true(own & own[:, [max(REFERENCE, -own.shape[1])]])


def above(counts: torch.Tensor) -> torch.Tensor:
    """Which of one sequence's image tokens the release leaves: bool [n], from counts [n]; strictly above the knee."""
    descending = counts.sort(descending=True).values
    return counts > descending[knee(descending)]
