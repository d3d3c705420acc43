"""KV caches of which nothing is copied while decoding, and which may have lost columns of the prompt.

Hugging Face's dynamic cache joins old and new columns in new memory at every step. Here the prompt's own tensors are
kept until the first token comes; then they move into buffers with room for the answer, which later steps write into.
Heads come before columns in them: attention over such a view reads runs of a head's columns, and is bit for bit what it
is over tensors without room.

A short cache remembers how many tokens it stands for. Positions and what `generate` feeds again follow the logical
length, masks the columns that are really there; so a second turn on the returned cache, and hand-written decode loops,
stay right.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from coremat.errors import UnsupportedError
from coremat.tensors import take

ROOM = 64  # columns, where nobody says how long an answer may become
MOST_ROOM = 512  # that are set aside beforehand, however long it may become


class InPlaceLayer(DynamicLayer):
    """keys, values [B, heads, columns, size]: what is there, and nothing else; from the first decode step on views of
    `_buffers`, which have room behind it.

    Whatever else is assigned to them (reordered, cut, repeated) moves into buffers of its own with the next token.
    """

    room = ROOM
    _buffers: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
    keys: torch.Tensor
    values: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns, and return all that are there."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self.keys.numel():
            self.keys, self.values = _alone(key_states), _alone(value_states)
        elif torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            super().update(key_states, value_states)  # what a gradient goes back through must not be written over
        else:
            old, new = (self.keys, self.values), (key_states, value_states)
            (self.keys, first), (self.values, second) = map(self._append, old, new, self._buffers)
            self._buffers = first, second
        return self.keys, self.values

    def _append(
        self, old: torch.Tensor, new: torch.Tensor, buffer: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All columns as a view of a buffer, and the buffer: a new one if `old` is elsewhere, or no room is left."""
        start, end = old.shape[2], old.shape[2] + new.shape[2]
        if buffer is None or not _fills(old, buffer) or end > buffer.shape[2]:
            outgrown = buffer is not None and _fills(old, buffer)
            room = max(self.room, start // 2) if outgrown else self.room
            buffer = new.new_empty(*old.shape[:2], end + room, old.shape[3])
            buffer[:, :, :start] = old
        buffer[:, :, start:end] = new
        return buffer[:, :, :end], buffer

    def reset(self) -> None:
        super().reset()
        self._buffers = None, None


def _alone(states: torch.Tensor) -> torch.Tensor:
    """The states without other tensors that share their memory and would be kept with them."""
    return states if states.untyped_storage().nbytes() == states.nbytes else states.contiguous().clone()


def _fills(columns: torch.Tensor, buffer: torch.Tensor) -> bool:
    """Whether these are the first columns of a buffer, and it may be written to."""
    same = columns.data_ptr() == buffer.data_ptr() and columns.stride() == buffer.stride()
    writable = torch.is_inference_mode_enabled() or not buffer.is_inference()
    return same and writable and columns.shape[:2] == buffer.shape[:2]


class InPlaceCache(DynamicCache):
    """Room for `new` tokens behind the prompt, and for more when they come. Layers with a window stay Hugging Face's:
    what they hold does not grow for long."""

    def __init__(self, config: Any, new: int = ROOM) -> None:
        super().__init__(config=config.get_text_config(decoder=True))
        for layer in self.layers:
            if type(layer) is DynamicLayer:
                layer.__class__, layer.room = InPlaceLayer, min(new, MOST_ROOM)


def in_place_cache(model: Any, kwargs: Mapping[str, Any]) -> InPlaceCache | None:
    """The cache for a call of `generate` with these arguments, which makes none itself then; None where it would not
    make a plain dynamic one."""
    sources = (kwargs, *(vars(c) for c in (kwargs.get("generation_config"), model.generation_config) if c is not None))

    def said(name: str) -> Iterator[Any]:
        return (source[name] for source in sources if source.get(name) is not None)

    if (
        next(said("past_key_values"), None) is not None
        or any(said("cache_implementation"))
        or not all(said("use_cache"))
    ):
        return None
    return InPlaceCache(model.config, next(said("max_new_tokens"), ROOM))


class ShortLayer(InPlaceLayer):
    """`dropped`: columns that the prompt had and the cache has not; the same in every row of a padded batch."""

    dropped = 0

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


# The last grows until its window is full (`runtime.window`).
GROWING = (DynamicLayer, InPlaceLayer, DynamicSlidingWindowLayer)


def check_cache(cache: Any) -> None:
    """Only a plain dynamic cache can be shortened; a static one would give wrong tokens without an error."""
    if cache is None or isinstance(cache, ShortCache):
        return
    plain = type(cache) in (DynamicCache, InPlaceCache) and all(type(layer) in GROWING for layer in cache.layers)
    if not plain:
        layers = sorted({type(layer).__name__ for layer in getattr(cache, "layers", [])})
        raise UnsupportedError(
            f"the KV cache is a {type(cache).__name__} of {', '.join(layers) or 'no layers'}; "
            "accepted: a DynamicCache of DynamicLayer (leave cache_implementation unset)."
        )


def shorten(cache: DynamicCache, steps: Sequence[torch.Tensor | None], dropped: Sequence[int]) -> None:
    """Cut each layer to the columns `steps` [B, K] of those that it has (None: all), and mark it as short by `dropped`
    columns of the prompt. What is cut takes memory of its own: that of the columns that are left."""
    cache.__class__ = ShortCache
    for layer, step, missing in zip(cache.layers, steps, dropped, strict=True):
        if step is not None:
            layer.keys, layer.values = take(layer.keys, step, 2), take(layer.values, step, 2)
        layer.__class__, layer.dropped = ShortLayer, missing
