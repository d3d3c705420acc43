"""A token method and a neuron method as one: "fastv:tokens=64+core-neurons"."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from coremat.errors import ConfigError
from coremat.ffn import SparseFFN
from coremat.methods.base import Forward, Method, Reduction, Stage
from coremat.methods.reads import Reads
from coremat.methods.registry import with_options
from coremat.methods.views import ImageView, LayerView
from coremat.models.shape import DecoderShape

TOKEN_SLOTS = (
    "stages",
    "tower_layers",
    "before_projector",
    "share_tiles",
    "before_decoder",
    "smaller_grids",
    "score",
    "counted_by",
    "recycle",
)


def joined(spec: str, parts: Sequence[Method]) -> "Joined":
    """ConfigError unless the first prunes tokens alone and the second neurons alone."""
    if len(parts) == 2 and parts[0].prunes_tokens and parts[1].prunes_neurons:
        tokens, neurons = parts
        if not tokens.prunes_neurons and not neurons.prunes_tokens:
            return Joined(tokens, neurons)
    cuts = " + ".join(part.slot for part in parts)
    raise ConfigError(f"method {spec!r} joins {cuts}; accepted: a method that prunes tokens alone + one of neurons.")


class States(NamedTuple):
    """What the `setup` of each part returned."""

    tokens: Any
    neurons: Any


class Joined(Method):
    """Every slot is the one part's or the other's."""

    def __init__(self, tokens: Method, neurons: Method) -> None:
        self.tokens, self.by_neuron = tokens, neurons

    def takes(self, slot: str) -> bool:
        if slot == "calibrate":
            return self.tokens.takes(slot) or self.by_neuron.takes(slot)
        return self.tokens.takes(slot) if slot in TOKEN_SLOTS else self.by_neuron.takes(slot)

    def replace(self, **options: object) -> "Joined":
        return Joined(with_options(self.tokens, **options), with_options(self.by_neuron, **options))

    @property
    def timing_only(self) -> bool:  # type: ignore[override]
        return self.tokens.timing_only or self.by_neuron.timing_only

    @property
    def accuracy_only(self) -> bool:  # type: ignore[override]
        return self.tokens.accuracy_only or self.by_neuron.accuracy_only

    @property
    def input_major(self) -> bool:  # type: ignore[override]
        return self.by_neuron.input_major

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return self.tokens.needs | self.by_neuron.needs

    def setup(self, model: Any) -> "States":
        return States(self.tokens.setup(model), self.by_neuron.setup(model))

    def stages(self, layers: int) -> Sequence[Stage]:
        return self.tokens.stages(layers)

    def tower_layers(self) -> Sequence[int]:
        return self.tokens.tower_layers()

    def before_projector(self, image: ImageView, keep: int | None) -> Reduction:
        return self.tokens.before_projector(_for_tokens(image), keep)

    def share_tiles(self, tiles: Sequence[ImageView], keep: int) -> Sequence[int]:
        return self.tokens.share_tiles([_for_tokens(tile) for tile in tiles], keep)

    def before_decoder(self, image: ImageView, keep: int | None) -> Reduction:
        return self.tokens.before_decoder(_for_tokens(image), keep)

    def smaller_grids(self, grid: tuple[int, int]) -> Sequence[tuple[int, int]]:
        return self.tokens.smaller_grids(grid)

    def score(self, stage: Stage, layer: LayerView) -> torch.Tensor:
        return self.tokens.score(stage, layer.of(layer.state.tokens))

    def counted_by(self, stage: Stage, layer: LayerView) -> torch.Tensor | None:
        return self.tokens.counted_by(stage, layer.of(layer.state.tokens))

    def recycle(self, stage: Stage, hidden: torch.Tensor, scores: torch.Tensor, keep: torch.Tensor) -> Reduction:
        return self.tokens.recycle(stage, hidden, scores, keep)

    def neurons(self, layer: LayerView) -> torch.Tensor:
        return self.by_neuron.neurons(layer.of(layer.state.neurons))

    def neuron_count(self, size: int) -> int:
        return self.by_neuron.neuron_count(size)

    def of_layer(self, number: int, layers: int) -> Method:
        return Joined(self.tokens, self.by_neuron.of_layer(number, layers))

    def prefill_neurons_from(self) -> int | None:
        return self.by_neuron.prefill_neurons_from()

    def shares_neurons(self) -> bool:
        return self.by_neuron.shares_neurons()

    def decode_ffn(self, number: int, mlp: Any, state: Any) -> SparseFFN:
        return self.by_neuron.decode_ffn(number, mlp, state.neurons)

    def linear(self, layer: int, name: str, linear: nn.Linear, state: Any) -> Forward | None:
        return self.by_neuron.linear(layer, name, linear, state.neurons)

    def reads(self, layer: int, shape: DecoderShape) -> Reads:
        return self.by_neuron.reads(layer, shape)

    def identity(self) -> dict[str, Any]:
        parts = [self.tokens.identity(), self.by_neuron.identity()]
        return {"name": "+".join(part["name"] for part in parts), "parts": parts}


def _for_tokens(image: ImageView) -> ImageView:
    return replace(image, state=image.state.tokens)
