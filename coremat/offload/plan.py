"""What a model needs on its device while FFN weights wait on the host, part by part, counted beforehand.

Weights are counted from the model's tensors (it may be on the meta device), the rest by formula. What the driver and
the libraries take for themselves is not in it, nor are the attention maps that "eager" attention writes.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import nn

from coremat.cost.schedule import Schedule
from coremat.errors import ConfigError, UnsupportedError
from coremat.methods.base import Method
from coremat.models.adapter import Adapter
from coremat.models.families import adapter_for
from coremat.models.shape import FFN
from coremat.offload.double_buffer import BUFFERS

UNITS = {"GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20}
INDEX_BYTES = 8
CHOOSING = 16  # bytes per activation of a layer: masks and a running count, while a method looks at them


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device, part by part.

    attention: the decoder layers without FFN weights; embedding: with the output head; vision: tower and projector;
    ffn: FFN weights of all `layers`. workspace: core rows, and weights that the method adds; buffers: room for FFN
    weights that visit. kv_cache: when it is largest, at the end of the prefill or of the answer; dense_kv_cache: the
    dense model's. activations: of a layer in the prefill, batch * tokens * item size * (8 hidden + 3 ffn); choosing:
    batch * tokens * ffn * `CHOOSING` for methods that are shown activations in the decoder.
    """

    layers: int
    attention: int
    embedding: int
    vision: int
    ffn: int
    workspace: int
    buffers: int
    kv_cache: int
    dense_kv_cache: int
    activations: int
    choosing: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        method: Method,
        schedule: Schedule,
        batch: int = 1,
        new_tokens: int = 1,
        dtype: torch.dtype | None = None,
    ) -> "MemoryPlan":
        """schedule: of each prompt of the batch, padding among its text; dtype: that the model will have, if it is
        another than now."""
        adapter = adapter_for(model)
        layers, shape, size = len(adapter.layers), adapter.shape, (dtype or adapter.model.dtype).itemsize
        weights, tokens = _weights(adapter, dtype), schedule.prompt_tokens
        column = batch * 2 * shape.key_value * size
        return cls(
            layers=layers,
            **weights,
            workspace=_workspace(method, batch, schedule, weights["ffn"] // (layers * shape.ffn))
            + size * sum(reads.extra for reads in schedule.reads),
            buffers=min(BUFFERS, layers) * weights["ffn"] // layers,
            kv_cache=column * max(sum(schedule.tokens), sum(schedule.cached) + layers * new_tokens),
            dense_kv_cache=column * layers * (tokens + new_tokens),
            activations=batch * tokens * size * (8 * shape.hidden + 3 * shape.ffn),
            choosing=batch * tokens * shape.ffn * CHOOSING * _observes(method, layers),
        )

    @property
    def outside_ffn(self) -> int:
        """Weights that are always on the device."""
        return self.attention + self.embedding + self.vision

    @property
    def needed(self) -> int:
        """With the FFN weights of all layers on the host."""
        return self.outside_ffn + self.workspace + self.buffers + self.kv_cache + self.activations + self.choosing

    @property
    def dense(self) -> int:
        """The dense model, all of it on the device."""
        return self.outside_ffn + self.ffn + self.dense_kv_cache + self.activations

    def dense_fits(self, limit: int) -> bool:
        return self.dense <= limit

    def resident_layers(self, limit: int) -> int:
        """How many layers' FFN weights fit beside what is needed; where all fit, there is no need of buffers."""
        if self.needed - self.buffers + self.ffn <= limit:
            return self.layers
        return max(0, (limit - self.needed) * self.layers // self.ffn)

    def check(self, limit: int) -> None:
        """Raises UnsupportedError, with what would be needed, for a limit that is too small with every FFN away."""
        if self.needed <= limit:
            return
        parts = {
            "weights outside the FFNs": self.outside_ffn,
            "core rows": self.workspace,
            "buffers": self.buffers,
            "KV cache": self.kv_cache,
            "activations": self.activations + self.choosing,
        }
        shares = ", ".join(f"{name} {bytes_text(size)}" for name, size in parts.items() if size)
        raise UnsupportedError(
            f"the memory limit is {bytes_text(limit)}, but this model needs {bytes_text(self.needed)}: {shares}."
        )


def parse_bytes(text: str) -> int:
    """Bytes from "12GB", "11.5 GiB" and the like. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([GM]i?B)", text.strip(), re.IGNORECASE | re.ASCII)
    size = int(Fraction(found[1]) * UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise ConfigError(f"memory limit is {text!r}; accepted: a number above 0 with GB, GiB, MB or MiB, as in 12GB.")
    return size


def _weights(adapter: Adapter, dtype: torch.dtype | None) -> dict[str, int]:
    """Bytes of every part, each tensor counted once, in the first part that has it."""
    ffns, ends = (
        map(adapter.ffn, adapter.layers),
        (adapter.model.get_input_embeddings, adapter.model.get_output_embeddings),
    )
    parts = {
        "ffn": [getattr(mlp, name).weight for mlp in ffns for name in FFN],
        "embedding": [tensor for end in ends for tensor in _tensors(end())],
        "attention": _tensors(adapter.decoder),
        "vision": _tensors(adapter.model),
    }
    counted: set[int] = set()
    sizes = {}
    for name, tensors in parts.items():
        own = {id(tensor): tensor for tensor in tensors if id(tensor) not in counted}
        counted |= own.keys()
        sizes[name] = sum(_bytes(tensor, dtype) for tensor in own.values())
    return sizes


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(tensor: torch.Tensor, dtype: torch.dtype | None) -> int:
    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.numel() * kind.itemsize


def _workspace(method: Method, batch: int, schedule: Schedule, neuron: int) -> int:
    """Core rows of all layers and their numbers, for each sequence its own or one set for all. neuron: bytes of the
    weights of one."""
    if not method.takes("neurons"):
        return 0
    sets = 1 if method.shares_neurons() else batch
    return sets * sum(schedule.neurons) * (neuron + INDEX_BYTES)


def _observes(method: Method, layers: int) -> bool:
    """Whether activations of decoder layers are shown to the method while it chooses."""
    in_decoder = any(stage.after for stage in method.pruning_stages(layers))
    return in_decoder or method.takes("neurons") or method.takes("edit_cache")


def bytes_text(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**8 else f"{size / 1e6:.2f} MB"
