"""A KV cache that lost columns but remembers how many tokens it stands for.

Positions and what `generate` feeds again follow the logical length, masks the columns that are really there;
so a second turn on the returned cache, and hand-written decode loops, stay right.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from coremat.errors import UnsupportedError
from coremat.tensors import take

GROWING = (DynamicLayer, DynamicSlidingWindowLayer)  # the second grows until its window is full (`coremat.window`)


class ShortLayer(DynamicLayer):
    """`dropped`: columns that the prompt had and the cache has not; the same in every row of a padded batch."""

    dropped = 0
    keys: torch.Tensor
    values: torch.Tensor

    def get_seq_length(self) -> int:
        there = super().get_seq_length()
        return there + self.dropped if there else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return DynamicLayer.get_seq_length(self) + query_length, 0

    def crop(self, tokens: int) -> None:
        """Remove `-tokens` columns, or (older transformers) all beyond the logical length `tokens`."""
        surplus = -tokens if tokens <= 0 else self.get_seq_length() - tokens
        if surplus > 0:
            self.keys, self.values = self.keys[..., :-surplus, :], self.values[..., :-surplus, :]


class ShortCache(DynamicCache):
    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Causality among several new tokens is counted in columns, not positions."""
        return DynamicLayer.get_seq_length(self.layers[layer_idx])


def check_cache(cache: Any) -> None:
    """Only a plain dynamic cache can be shortened; a static one would give wrong tokens without an error."""
    if cache is None or isinstance(cache, ShortCache):
        return
    plain = type(cache) is DynamicCache and all(type(layer) in GROWING for layer in cache.layers)
    if not plain:
        layers = sorted({type(layer).__name__ for layer in getattr(cache, "layers", [])})
        raise UnsupportedError(
            f"the KV cache is a {type(cache).__name__} of {', '.join(layers) or 'no layers'}; "
            "accepted: a DynamicCache of DynamicLayer (leave cache_implementation unset)."
        )


def shorten(cache: DynamicCache, steps: Sequence[torch.Tensor | None], dropped: Sequence[int]) -> None:
    """Cut each layer to the columns `steps` [B, K] of those that it has (None: all), and mark it as short by `dropped`
    columns of the prompt."""
    cache.__class__ = ShortCache
    for layer, step, missing in zip(cache.layers, steps, dropped, strict=True):
        if step is not None:
            layer.keys, layer.values = take(layer.keys, step, 2), take(layer.values, step, 2)
        layer.__class__, layer.dropped = ShortLayer, missing
