"""The sides of a comparison: a method and a way of decoding it, opened on the model for one answer at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from coremat.config import SparsityConfig
from coremat.graph_decode import GraphDecoder
from coremat.models import Adapter
from coremat.offload import accelerate_offload, offloaded_ffn
from coremat.patch import Session, apply
from coremat.profile.timing import AnswerTimes, Inputs, timed_generate, timed_graph

EAGER, GRAPH = "eager generate", "graph"
STREAMED, ACCELERATE = "streamed FFN", "accelerate offload"
WARM_UP_TOKENS = 4  # enough for a copy of core rows to be made, into memory that the answer then finds there

Timed = Callable[[Inputs, int], AnswerTimes]


@dataclass(frozen=True)
class Side:
    """spec: the method as typed. memory_limit: bytes of the device that weights and cache may take, None where all
    fits; resident_layers: of how many layers the FFN weights stay on the device then."""

    spec: str
    config: SparsityConfig
    decoder: str
    device: torch.device
    memory_limit: int | None = None
    resident_layers: int = 0

    @property
    def label(self) -> str:
        return f"{self.spec}, {self.decoder}"

    @contextmanager
    def open(self, adapter: Adapter, batch_size: int, new_tokens: int) -> Iterator[tuple[Session, Timed]]:
        """The model as this side has it. Offload comes first, for a session takes the weights as it finds them."""
        with ExitStack() as undo:
            for placed in self._placements(adapter):
                undo.enter_context(placed)
            session = undo.enter_context(apply(adapter.model, self.config))
            if self.decoder != GRAPH:
                yield session, partial(timed_generate, adapter, session)
                return
            decoder = GraphDecoder(adapter.model, session, max(new_tokens, WARM_UP_TOKENS), batch_size)
            yield session, partial(timed_graph, adapter, session, decoder)

    def _placements(self, adapter: Adapter) -> Sequence[AbstractContextManager]:
        if self.memory_limit is None:
            return ()
        if self.decoder == ACCELERATE:
            return (accelerate_offload(adapter.model, self.device, self.memory_limit),)
        return (offloaded_ffn(adapter.model, self.device, self.resident_layers),)

    def answer(self, adapter: Adapter, inputs: Inputs, new_tokens: int) -> AnswerTimes:
        """One timed answer, after a short one to a few words, which finds memory and threads for it."""
        words = {name: inputs[name][:, -WARM_UP_TOKENS:] for name in ("input_ids", "attention_mask")}
        with self.open(adapter, len(inputs["input_ids"]), new_tokens) as (_, timed):
            timed(words, WARM_UP_TOKENS)
            return timed(inputs, new_tokens)


def decoders(device: torch.device, config: SparsityConfig, memory_limit: int | None) -> tuple[str, ...]:
    """The ways to decode a method here: as users do, and the fastest there is.

    Under a memory limit dense is given to accelerate, as users do, and to the same streams that sparse prefills use.
    """
    if memory_limit is not None:
        return (EAGER, GRAPH) if config.prunes_neurons else (ACCELERATE, STREAMED)
    return (EAGER, GRAPH) if device.type == "cuda" else (EAGER,)
