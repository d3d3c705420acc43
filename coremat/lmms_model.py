"""The model as lmms-eval sees it: batches of its requests, answered with a method's tokens and neurons dropped.

Used in memory by `coremat eval`, and by lmms-eval's own command line as
`--model coremat --model_args pretrained=NAME_OR_PATH,method=corematching,beta=0.2`.
What lmms-eval expects of a model, and where models usually fail it, is said where it is done: `generate_until`
keeps the order and lets exceptions through, `generation_settings` never touches a request's own settings, `clean`
keeps the model, and `repr` names all that the answers depend on, for lmms-eval's response cache.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from PIL import Image

from coremat import __version__
from coremat.config import SparsityConfig
from coremat.errors import ConfigError, UnsupportedError
from coremat.inference import Answer, Answerer, answering
from coremat.loading import LoadedModel, load
from coremat.methods import method_config

DEFAULT_NEW_TOKENS = 128  # where a task says nothing
SETTINGS = (
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "num_beams",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "until",
)


@dataclass(frozen=True)
class Question:
    """One request: its place in the task, what is shown and asked, and the key of its answer."""

    key: str
    task: str
    doc_id: int
    text: str
    conversation: list[dict[str, Any]]
    generation: dict[str, Any]


class AnswerStore(Protocol):
    """Where answers are kept as they are made, and found again after a run was stopped."""

    def get(self, question: Question) -> str | None:
        """The text of an answer made before, under the same key."""

    def add(self, made: Sequence[tuple[Question, Answer]]) -> None:
        """Keep what one batch gave."""


class NoStore:
    """Keeps nothing: for a run that can't be resumed."""

    def get(self, question: Question) -> str | None:
        return None

    def add(self, made: Sequence[tuple[Question, Answer]]) -> None:
        pass


class CoreMatchingLmms(lmms):
    """A loaded model under one method. Chat type, generation only.

    pretrained: a name or path for `coremat.load`, or a model loaded already. method: a method's name, whose config
    `fields` change, or a config. store: see AnswerStore. on_done: called with the number of answers after each batch.
    seed: of random scores and of sampling; what a sample draws depends on it, the task and the sample alone.
    max_batch_size is what lmms-eval passes to every model; nothing is searched here.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | LoadedModel,
        method: str | SparsityConfig = "corematching",
        batch_size: int | str = 1,
        device: str = "auto",
        dtype: str = "auto",
        seed: int = 0,
        max_batch_size: object = None,
        store: AnswerStore | None = None,
        on_done: Callable[[int], None] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        self.batch_size = _whole(batch_size)
        self.loaded = load(pretrained, device, dtype) if isinstance(pretrained, str) else pretrained
        self.config = self._config(method, {"seed": seed, **fields})
        self.device = self.loaded.device
        self.store = store or NoStore()
        self.on_done = on_done or (lambda count: None)
        config = json.dumps(self.config.as_dict(), sort_keys=True)
        self._repr = f"coremat {__version__} (weights {self.loaded.fingerprint}, {self.loaded.dtype}, {config})"

    def _config(self, method: str | SparsityConfig, fields: dict[str, Any]) -> SparsityConfig:
        if isinstance(method, SparsityConfig):
            return method
        return method_config(method, **{"prune_layer": self.loaded.prune_layer, **fields})

    def __repr__(self) -> str:
        return self._repr

    def clean(self) -> None:
        """Keep the model: lmms-eval would delete it after the first task, and it is not this object's own."""

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """The answers in the order of the requests. What goes wrong in the model is raised, never scored as ""."""
        results: dict[int, GenerationResult] = {}
        with answering(self.loaded, self.config) as answer:
            for batch in batches(requests, self.batch_size):
                texts = self._texts(answer, [self._question(requests[index]) for index in batch])
                results.update(zip(batch, texts, strict=True))
                self.on_done(len(batch))
        return [results[index] for index in range(len(requests))]

    def _texts(self, answer: Answerer, questions: list[Question]) -> list[GenerationResult]:
        """Found or made. A batch that is found in part is computed whole: its members are what they were together."""
        found = [self.store.get(question) for question in questions]
        if None not in found:
            return [GenerationResult(text) for text in found if text is not None]
        seeds = [sample_seed(self.config.seed, question.task, question.doc_id) for question in questions]
        conversations = [question.conversation for question in questions]
        answers = answer(conversations, questions[0].generation, seeds)
        made = zip(questions, answers, found, strict=True)
        self.store.add([(question, new) for question, new, old in made if old is None])
        return [
            GenerationResult(new.text, TokenCounts(output_tokens=new.new_tokens))
            if old is None
            else GenerationResult(old)
            for new, old in zip(answers, found, strict=True)
        ]

    def _question(self, request: Instance) -> Question:
        text, doc_to_messages, settings, doc_id, task, split = request.args
        conversation = _hf_conversation(doc_to_messages(self.task_dict[task][split][doc_id]))
        generation = generation_settings(settings)
        key = digest(self._repr, task, doc_id, conversation, generation)
        return Question(key, task, doc_id, text, conversation, generation)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise UnsupportedError("this task compares likelihoods of given answers, and coremat only generates answers")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise UnsupportedError("this task talks in several rounds, and coremat answers in one")


def _whole(batch_size: int | str) -> int:
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise ConfigError(f"batch_size is {batch_size!r}; accepted: a whole number, at least 1")
    return int(batch_size)


def batches(requests: Sequence[Instance], size: int) -> Iterator[list[int]]:
    """Indices of requests that are answered together: with the same settings, and prompts of like length.

    Short answers then seldom wait for long ones, as questions of one wording want answers of one kind. The batches
    follow from all requests alone, so that a run that was stopped meets the same ones again.
    """
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(digest(request.args[2]), []).append(index)
    for group in groups.values():
        group.sort(key=lambda index: (len(requests[index].args[0]), requests[index].args[0], index))
        yield from (group[start : start + size] for start in range(0, len(group), size))


def generation_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A task's settings as `coremat.inference.Answerer` takes them, from a copy: lmms-eval uses the original again.

    Greedy at temperature 0; `until` a list of stop strings; what only other models know is left out.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if foreign := sorted(set(given) - set(SETTINGS)):
        logger.info(f"generation settings that are not for this model: {', '.join(foreign)}")
    chosen = {name: given[name] for name in SETTINGS if name in given}
    sampled = bool(chosen.get("do_sample", chosen.get("temperature", 0) > 0)) and chosen.get("temperature") != 0
    if not sampled:
        for name in ("temperature", "top_p", "top_k"):
            chosen.pop(name, None)
    stops = chosen.pop("until", [])
    chosen["until"] = [stops] if isinstance(stops, str) else list(stops)
    return {"max_new_tokens": DEFAULT_NEW_TOKENS, **chosen, "do_sample": sampled}


def sample_seed(seed: int, task: str, doc_id: int) -> int:
    """What a sample draws with: its own, whatever batch it comes in and whatever was answered before."""
    return int(digest(seed, task, doc_id)[:15], 16)


def digest(*parts: Any) -> str:
    """A hash of plain values and images, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return [value.mode, *value.size, hashlib.sha256(value.tobytes()).hexdigest()]
    return repr(value)


def _hf_conversation(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """lmms-eval's messages as transformers' chat templates take them: a medium under the name of its type."""
    return [
        {"role": message["role"], "content": [_hf_part(part) for part in message["content"]]} for message in messages
    ]


def _hf_part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part["type"]
    return {"type": kind, kind: part["text"] if kind == "text" else part["url"]}
