"""The variants that a bench compares: a method and a decoder, opened on the model for one answer at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from coremat.bench.timing import AnswerTimes, Inputs, timed_generate, timed_graph
from coremat.decoding.graph_decoder import GraphDecoder, why_unsupported
from coremat.methods.base import Method
from coremat.models.adapter import Adapter
from coremat.names import DENSE
from coremat.offload.accelerate import accelerate_offload
from coremat.offload.ffn_streaming import offloaded_ffn
from coremat.results.record.bench import ACCELERATE, EAGER, IN_PLACE, USUAL
from coremat.runtime.questions import spelled
from coremat.runtime.session import Session, apply

GRAPH, STREAMED = "graph", "streamed FFN"
WARM_UP_TOKENS = 4  # enough for a copy of core rows to be made, into memory that the answer then finds there

Timed = Callable[[Inputs, int], AnswerTimes]


class MemoryLimit(NamedTuple):
    """Bytes of a device that is too small for the dense model: all of them, and those that its weights may take."""

    whole: int
    weights: int


@dataclass(frozen=True)
class Variant:
    """spec: the method as typed. limit: None where all fits; resident_layers: of how many layers the FFN weights stay
    on the device otherwise."""

    spec: str
    method: Method
    decoder: str
    device: torch.device
    limit: MemoryLimit | None = None
    resident_layers: int = 0

    @property
    def label(self) -> str:
        return f"{self.spec}, {self.decoder}"

    @contextmanager
    def open(self, adapter: Adapter, batch_size: int, new_tokens: int) -> Iterator[tuple[Session, Timed]]:
        """The model as this variant runs it. Offload comes first, for a session takes the weights as it finds them."""
        with ExitStack() as restore:
            for placed in self._placements(adapter):
                restore.enter_context(placed)
            session = restore.enter_context(apply(adapter.model, self.method))
            session.questions = spelled
            if self.decoder != GRAPH:
                yield session, partial(timed_generate, adapter, session, self.decoder in USUAL)
                return
            decoder = GraphDecoder(adapter.model, session, max(new_tokens, WARM_UP_TOKENS), batch_size)
            yield session, partial(timed_graph, adapter, session, decoder)

    def _placements(self, adapter: Adapter) -> Sequence[AbstractContextManager]:
        if self.limit is None:
            return ()
        if self.decoder == ACCELERATE:
            return (accelerate_offload(adapter.model, self.device, self.limit.weights),)
        return (offloaded_ffn(adapter.model, self.device, self.resident_layers),)

    def answer(self, adapter: Adapter, inputs: Inputs, new_tokens: int) -> AnswerTimes:
        """One timed answer, after a short one that finds memory and threads for it: to a few words, or, where a graph
        has to be captured for a cache of its size, to the same prompt."""
        words = {name: inputs[name][:, -WARM_UP_TOKENS:] for name in ("input_ids", "attention_mask")}
        with self.open(adapter, len(inputs["input_ids"]), new_tokens) as (_, timed):
            timed(inputs if self.decoder == GRAPH else words, WARM_UP_TOKENS)
            return timed(inputs, new_tokens)


def decoders(device: torch.device, adapter: Adapter, method: Method, limit: MemoryLimit | None) -> tuple[str, ...]:
    """The ways to decode a method here: as coremat does and the fastest there is; for dense, as users do, before them.

    Where memory is short dense is given to accelerate, as users do, and to the same streams that sparse prefills use.
    """
    fast = (IN_PLACE, GRAPH) if why_unsupported(adapter) is None else (IN_PLACE,)
    if limit is not None:
        return fast if method.prunes_neurons else (ACCELERATE, STREAMED)
    own = fast if device.type == "cuda" else (IN_PLACE,)
    return (EAGER, *own) if method.label == DENSE else own
