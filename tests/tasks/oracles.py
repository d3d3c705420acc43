"""Models that know the mirrors: one is always right, one always wrong, one says yes to all, one takes option A.

Each is a method of its own, so that one evaluation asks them all. Whoever asks must show what belongs to the question,
and name the options where there are some: the answer's letter is read off the question as it was put.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from fake_answers import question_of
from mirrors import VIDEO_TASKS
from mirrors_questions import QUESTIONS, Asked, picture, scenes

import coremat.tasks.lmms_eval.model
from coremat.generate import Answer
from coremat.methods.base import Method
from coremat.methods.corematching.core_tokens import CoreTokens
from coremat.models.load import LoadedModel
from coremat.preprocessing.video import Clip
from coremat.runtime.stats import SequenceStats

WAYS: dict[str, Callable[[Asked], str]] = {
    "right": lambda one: one.right,
    "wrong": lambda one: one.wrong,
    "yes": lambda one: "Yes",
    "a": lambda one: "A",
}
METHODS = {way: CoreTokens(tokens=number) for number, way in enumerate(WAYS, 1)}  # whose budget says who answers
VIDEOS = sorted({one.shown[0] for name in VIDEO_TASKS for one in QUESTIONS[name]})
STATS = SequenceStats(
    prompt_tokens=40,
    image_tokens=16,
    image_tokens_kept=1,
    kept=(0,),
    neurons=32,
    neurons_kept=(8, 8),
    tokens_per_layer=(40, 25),
    cached_per_layer=(25, 25),
    kv_bytes=1024,
    ffn_bytes_per_token=3 << 20,
    prefill_flops=10**9,
    selection_seconds=0.0,
    gather_seconds=0.0,
    knees_differ=None,
)


def asked_by(text: str) -> Asked:
    """The question of the mirrors that stands in a prompt. Some tasks write its first letter large, the rest small."""
    found = [one for every in QUESTIONS.values() for one in every if one.question.lower() in text.lower()]
    assert len(found) == 1, f"{len(found)} questions of the mirrors are in {text!r}"
    return found[0]


def check_shown(one: Asked, parts: Sequence[dict[str, Any]]) -> None:
    """What is shown is the question's: its pictures, or its video."""
    media = [part[part["type"]] for part in parts if part["type"] != "text"]
    assert len(media) == len(one.pictures), f"{len(media)} pictures or videos are shown with {one.question!r}"
    for medium, name in zip(media, one.pictures, strict=True):
        if isinstance(medium, Clip):
            assert video_of(medium) == name, f"the video {video_of(medium)} is shown with {one.question!r}"
        else:
            assert medium.tobytes() == picture(name).tobytes(), f"another picture is shown with {one.question!r}"


def video_of(clip: Clip) -> str:
    """The video whose scenes these frames are nearest to: few colours outlive a video's compression."""
    seen = [clip.frames[place].mean(axis=(0, 1)) for place in (0, -1)]
    return min(VIDEOS, key=lambda name: np.abs(np.array(seen) - np.array(scenes(name))).sum())


def log(way: str, conversation: Sequence[dict[str, Any]]) -> str:
    text = question_of(list(conversation))
    one = asked_by(text)
    check_shown(one, conversation[-1]["content"])
    said = WAYS[way](one)
    if said not in one.options:
        return said
    letters = re.findall(rf"^([A-D])\. {re.escape(said)}$", text, re.MULTILINE)
    assert len(letters) == 1, f"the option {said!r} is there {len(letters)} times in {text!r}"
    return letters[0]


class Oracles:
    """In the place of `coremat.generate.answering`; `asked`: the prompts, and the settings of each."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    @contextmanager
    def answering(self, loaded: LoadedModel, method: Method) -> Iterator[Callable[..., list[Answer]]]:
        yield partial(self._answer, next(way for way, own in METHODS.items() if own == method))

    def _answer(
        self,
        way: str,
        conversations: Sequence[list[dict[str, Any]]],
        generation: dict[str, Any],
        sample_seeds: Sequence[int] | None = None,
    ) -> list[Answer]:
        self.asked += [(question_of(one), generation) for one in conversations]
        return [Answer(log(way, one), 1, 0.01, 0.002, STATS) for one in conversations]


def install(put: Callable[[Any, str, Any], None], oracles: Oracles) -> Oracles:
    """`put` as `setattr` or monkeypatch.setattr."""
    put(coremat.tasks.lmms_eval.model, "answering", oracles.answering)
    return oracles
