"""What one decode step reads and writes, at addresses that never change: prompts differ in its content only."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StaticCache

from coremat.runtime.decode_groups import DecodeGroup

WARM_UPS = 3  # steps before a capture, in which libraries choose kernels and allocate their workspaces


@dataclass(frozen=True, eq=False)
class GroupBuffers:
    """Of the layers whose caches hold the same tokens. live: bool [B, slots], False for columns to hide; shift: int64
    [B, 1], how much earlier their tokens come than `StepBuffers.position`, or None for not at all."""

    layers: tuple[int, ...]
    live: torch.Tensor
    shift: torch.Tensor | None

    def load(self, group: DecodeGroup) -> None:
        self.live.fill_(True)[:, : group.kept.width].copy_(group.kept.live)
        if self.shift is not None and group.shift is not None:
            self.shift.copy_(group.shift)


class StepBuffers:
    """Shaped after the prompt that came first: its `kv` cache, its `groups` of layers, its last logits [B, V] and
    position [B, 1].

    cache: per layer `slots` columns, of which as many are used as its length says; position: of the next token; token:
    [B, 1], the next token; new: [B, answer], the answer, of which `count` tokens are there; logits: float32 [B, V],
    those that the last of them was chosen from.
    """

    def __init__(
        self,
        config: Any,
        kv: Any,
        groups: Sequence[DecodeGroup],
        slots: int,
        answer: int,
        logits: torch.Tensor,
        position: torch.Tensor,
    ) -> None:
        rows, device = len(logits), logits.device
        self.cache = StaticCache(config=config, max_cache_len=slots)
        for layer, read in zip(self.cache.layers, kv.layers, strict=True):
            layer.lazy_initialization(read.keys, read.values)
        self.slots = torch.arange(slots, device=device)
        self.groups = [
            GroupBuffers(
                group.layers,
                torch.ones(rows, slots, dtype=torch.bool, device=device),
                None if group.shift is None else torch.zeros_like(group.shift),
            )
            for group in groups
        ]
        self.position = torch.zeros_like(position)
        self.token = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.new = torch.zeros(rows, answer, dtype=torch.int64, device=device)
        self.count = torch.zeros(1, dtype=torch.int64, device=device)
        self.logits = torch.zeros_like(logits, dtype=torch.float32)

    def fit(self, groups: Sequence[DecodeGroup], slots: int) -> bool:
        """Whether a prompt whose layers hold tokens in these groups has room here."""
        kinds = [(group.layers, group.shift is None) for group in groups]
        return len(self.slots) >= slots and kinds == [(own.layers, own.shift is None) for own in self.groups]

    def load(self, kv: Any, groups: Sequence[DecodeGroup], logits: torch.Tensor, position: torch.Tensor) -> None:
        """Take over what a prefill left: its cache, and logits and position of its last token."""
        for layer, read in zip(self.cache.layers, kv.layers, strict=True):
            kept = read.keys.shape[2]
            for own, other in ((layer.keys, read.keys), (layer.values, read.values)):
                own[:, :, :kept].copy_(other)
                own[:, :, kept:].zero_()  # a hidden column weighs 0, and 0 times a NaN of the last prompt is a NaN
            layer.cumulative_length.fill_(kept)
        for buffers, group in zip(self.groups, groups, strict=True):
            buffers.load(group)
        self.position.copy_(position)
        self.count.zero_()
        self.accept(logits)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Undoes a step that is made inside, but for the next column of cache and answer, which the next one writes."""
        lengths = [layer.cumulative_length for layer in self.cache.layers]
        moving = [*lengths, self.position, self.token, self.count, self.logits]
        before = [tensor.clone() for tensor in moving]
        yield
        for tensor, old in zip(moving, before, strict=True):
            tensor.copy_(old)

    def masks(self) -> list[torch.Tensor]:
        """For each group [B, 1, 1, slots], added to attention logits: shows the columns that are used, and the next."""
        return [self._mask(group) for group in self.groups]

    def _mask(self, group: GroupBuffers) -> torch.Tensor:
        first = self.cache.layers[group.layers[0]]
        hidden = ~group.live | (self.slots > first.cumulative_length)
        # Of numbers for SDPA too, which out of a bool mask would make these again in every layer.
        shown = torch.zeros(hidden.shape, dtype=first.keys.dtype, device=hidden.device)
        return shown.masked_fill(hidden, torch.finfo(shown.dtype).min)[:, None, None]

    def accept(self, logits: torch.Tensor) -> None:
        """Append the likeliest token to the answer, and feed it next."""
        self.logits.copy_(logits)
        self.token.copy_(self.logits.argmax(-1, keepdim=True))
        self.new.index_copy_(1, self.count, self.token)
        self.count.add_(1)
        self.position.add_(1)

    @property
    def cache_bytes(self) -> int:
        tensors = [t for layer in self.cache.layers for t in (layer.keys, layer.values)]
        return sum(t.numel() * t.element_size() for t in tensors)


Step = Callable[[StepBuffers], None]


def captured(step: Step, buffers: StepBuffers) -> torch.cuda.CUDAGraph:
    """`step` as a CUDA graph: a replay does to the same memory, its `buffers` included, what a call would do."""
    device, graph = buffers.new.device, torch.cuda.CUDAGraph()
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            with buffers.restored():
                step(buffers)
    torch.cuda.current_stream(device).wait_stream(side)
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=side):
        step(buffers)  # recorded, not run
    return graph


class AsyncCopy:
    """Copies of a tensor for the host. A CUDA device goes on working while one is under way."""

    def __init__(self, tensor: torch.Tensor) -> None:
        cuda = tensor.device.type == "cuda"
        self._tensor, self._copy = tensor, torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=cuda)
        self._sent = torch.cuda.Event() if cuda else None

    def send(self) -> None:
        self._copy.copy_(self._tensor, non_blocking=True)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(self._tensor.device))

    def receive(self) -> torch.Tensor:
        """The tensor as it was when sent; the next sending overwrites it."""
        if self._sent is not None:
            self._sent.synchronize()
        return self._copy
