"""A KV cache that lost columns but remembers how many tokens it stands for.

Positions and what `generate` feeds again follow the logical length, masks the columns that are really there;
so a second turn on the returned cache, and hand-written decode loops, stay right.
"""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from coremat.errors import UnsupportedError

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


def shorten(cache: DynamicCache, index: torch.Tensor, full_layers: int, dropped: int) -> None:
    """Cut the first `full_layers` layers to the columns `index` [B, K], and mark every layer as short by `dropped`."""
    for layer in cache.layers[:full_layers]:
        layer.keys, layer.values = take(layer.keys, index, 2), take(layer.values, index, 2)
    cache.__class__ = ShortCache
    for layer in cache.layers:
        layer.__class__, layer.dropped = ShortLayer, dropped


def take(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """Per-row selection: x [B or 1, ...], index [B, K]: `x` narrowed along `dim` to each row's own K."""
    if len(x) == 1 and len(index) > 1:
        x = x.expand(len(index), *x.shape[1:])
    view = [1] * x.dim()
    view[0], view[dim] = index.shape
    size = list(x.shape)
    size[dim] = index.shape[1]
    return x.gather(dim, index.view(view).expand(size))
