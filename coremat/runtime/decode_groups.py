"""Layers that hold the same tokens after a prefill: what a static decode step has to know of a prompt."""

from dataclasses import dataclass

import torch

from coremat.runtime.kept_tokens import KeptTokens
from coremat.runtime.prompt import Prompt


@dataclass(frozen=True, eq=False)
class DecodeGroup:
    """layers: their numbers. kept: the tokens that their caches hold. shift: how much earlier their new tokens come
    than those of the first layer, int64 [B, 1], or None."""

    layers: tuple[int, ...]
    kept: KeptTokens
    shift: torch.Tensor | None


def groups_of(prompt: Prompt, layers: int) -> list[DecodeGroup]:
    found: dict[tuple[int, int], list[int]] = {}
    parts = {}
    for layer in range(layers):
        kept, shift = prompt.cached(layer), prompt.segment_of(layer).shift
        key = id(kept), id(shift)
        parts[key] = kept, shift
        found.setdefault(key, []).append(layer)
    return [DecodeGroup(tuple(numbers), *parts[key]) for key, numbers in found.items()]
