"""A model that answers at once: for tests in which the way of an answer matters and not what it is."""

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

import coremat.tasks.lmms_eval.model
from coremat.generate import Answer
from coremat.methods.base import Method
from coremat.methods.registry import parse
from coremat.models.load import LoadedModel
from coremat.runtime.stats import SequenceStats

FAKE = LoadedModel("fake", torch.nn.Identity(), None, "weights-0", 3, "cpu", "float32")
METHODS = {name: parse(name) for name in ("dense", "corematching")}
TASKS = ("easyvqa", "shapes")
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of ...")


def question_of(conversation: list[dict[str, Any]]) -> str:
    return conversation[-1]["content"][-1]["text"]


def one_answer(method: Method, conversation: list[dict[str, Any]]) -> Answer:
    """The same for the same question, image and method, and one of three for different ones."""
    image = next(part["image"] for part in conversation[-1]["content"] if part["type"] == "image")
    number = zlib.crc32(repr((method, question_of(conversation))).encode() + image.tobytes())
    kept = tuple(range(number % 30, 60))
    sizes = {"prompt_tokens": 150, "image_tokens": 144, "image_tokens_kept": len(kept), "neurons": 352}
    costs = {"kv_bytes": number % 4096, "prefill_flops": number, "ffn_bytes_per_token": 3 << 20}
    costs |= {"selection_seconds": 0.001, "gather_seconds": 0.0}
    layers = {"tokens_per_layer": (150, 150), "cached_per_layer": (150, 150)}
    stats = SequenceStats(**sizes, **costs, **layers, kept=kept, neurons_kept=(140, 141), knees_differ=None)
    return Answer(("yes", "no", "red")[number % 3], 1 + number % 2, 0.01, (None, 0.002)[number % 2], stats)


class FakeAnswer:
    """In the place of `coremat.generate.answering`; remembers what it was asked.

    `error` is raised once `fail_after` batches are answered, and `no_memory` whenever there are more than `room`.
    """

    def __init__(
        self,
        fail_after: int | None = None,
        error: BaseException | None = None,
        pause: float = 0,
        room: int | None = None,
        no_memory: Exception = NO_MEMORY,
    ) -> None:
        self.asked: list[list[str]] = []
        self.settings: list[dict[str, Any]] = []
        self.seeds: list[Sequence[int] | None] = []
        self.fail_after, self.error, self.pause = fail_after, error, pause
        self.room, self.no_memory = room, no_memory

    @contextmanager
    def answering(self, loaded: LoadedModel, method: Method) -> Iterator[Callable[..., list[Answer]]]:
        yield partial(self._answer, method)

    def _answer(
        self,
        method: Method,
        conversations: Sequence[list[dict[str, Any]]],
        generation: dict[str, Any],
        sample_seeds: Sequence[int] | None = None,
    ) -> list[Answer]:
        if self.error is not None and len(self.asked) == self.fail_after:
            raise self.error
        if self.room is not None and len(conversations) > self.room:
            raise self.no_memory
        time.sleep(self.pause)
        self.asked.append([question_of(one) for one in conversations])
        self.settings.append(generation)
        self.seeds.append(sample_seeds)
        return [one_answer(method, one) for one in conversations]


def install(put: Callable[[Any, str, Any], None], fake: FakeAnswer) -> FakeAnswer:
    """`put` as `setattr` or monkeypatch.setattr."""
    put(coremat.tasks.lmms_eval.model, "answering", fake.answering)
    return fake
