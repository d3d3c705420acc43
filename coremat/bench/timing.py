"""One answer of fixed length, with a time for each of its parts."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessorList

from coremat.decoding.graph_decoder import GraphDecoder
from coremat.generate import TokenMarks
from coremat.models.adapter import Adapter
from coremat.runtime.session import Session
from coremat.timers import Marks

Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class AnswerTimes:
    """Seconds of one answer. vision: tower and projector; prefill: decoder and head, choosing included; selection and
    gathering: parts of the others; tokens: from the start until each new token was there. kv_bytes: the cache of all
    sequences after the prefill, as its tensors are."""

    vision: float
    prefill: float
    selection: float
    gathering: float
    tokens: tuple[float, ...]
    kv_bytes: int

    @property
    def decode(self) -> float | None:
        """The median step; None if the prefill gave the only token."""
        steps = [after - before for before, after in zip(self.tokens, self.tokens[1:], strict=False)]
        return median(steps) if steps else None


def timed_generate(adapter: Adapter, session: Session, own_cache: bool, inputs: Inputs, new_tokens: int) -> AnswerTimes:
    """Hugging Face's greedy `generate` of exactly `new_tokens`, on its own cache or on the session's."""
    marks = Marks(adapter.model.device)
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    options |= {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    options["logits_processor"] = LogitsProcessorList([TokenMarks(marks)])
    if own_cache:
        options["past_key_values"] = DynamicCache(config=adapter.model.config.get_text_config(decoder=True))
    with _marked(adapter, marks), torch.inference_mode():
        marks.mark("start")
        out = adapter.model.generate(**inputs, **options)
    return _times(marks, session, _bytes(adapter, out.past_key_values, new_tokens - 1))


def timed_graph(
    adapter: Adapter, session: Session, decoder: GraphDecoder, inputs: Inputs, new_tokens: int
) -> AnswerTimes:
    """The same answer from a `GraphDecoder`, whose steps are alike: each gets an equal part of their time."""
    marks = Marks(adapter.model.device)
    with _marked(adapter, marks):
        marks.mark("start")
        decoder.prefill(dict(inputs))
        marks.mark("token")
        if new_tokens > 1:
            decoder.decode(new_tokens)
        marks.mark("end")
    return _times(marks, session, sum(row.kv_bytes for row in session.stats), steps=new_tokens - 1)


@contextmanager
def _marked(adapter: Adapter, marks: Marks) -> Iterator[None]:
    """Mark where the vision tower begins, the projector ends, and the decoder begins."""
    with ExitStack() as undo:
        if adapter.vision:
            tower, projector = adapter.vision
            undo.callback(tower.register_forward_pre_hook(lambda *_: marks.mark("vision begins")).remove)
            undo.callback(projector.register_forward_hook(lambda *_: marks.mark("vision ends")).remove)
        undo.callback(adapter.decoder.register_forward_pre_hook(lambda *_: marks.mark("decoder begins")).remove)
        yield


def _times(marks: Marks, session: Session, kv_bytes: int, steps: int = 0) -> AnswerTimes:
    """steps: how many equal ones lie between the mark of the first token and "end"."""
    at: dict[str, list[float]] = {}
    for name, moment in marks.seconds():
        at.setdefault(name, []).append(moment)
    tokens = at["token"]
    if steps:
        step = (at["end"][0] - tokens[0]) / steps
        tokens = [tokens[0] + number * step for number in range(steps + 1)]
    return AnswerTimes(
        vision=sum(at.get("vision ends", [])) - sum(at.get("vision begins", [])),
        prefill=at["token"][0] - at["decoder begins"][0],
        selection=sum(row.selection_seconds for row in session.stats),
        gathering=sum(row.gather_seconds for row in session.stats),
        tokens=tuple(tokens),
        kv_bytes=kv_bytes,
    )


def _bytes(adapter: Adapter, cache: Any, new: int) -> int:
    """Of the columns that were there before the last `new` ones; an image's own keys, where they are, never grow."""
    total = 0
    for layer, kept in zip(adapter.layers, cache.layers, strict=True):
        grown = new if adapter.caches_text(layer) else 0
        tensors = [tensor for tensor in (kept.keys, kept.values) if tensor is not None]
        total += sum(t[:, :, : t.shape[2] - grown].numel() * t.element_size() for t in tensors)
    return total
