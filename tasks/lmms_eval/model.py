"""The model as lmms-eval sees it: batches of its requests, answered with a method's tokens and neurons dropped.

Used in memory by `coremat eval`, and by lmms-eval's own command line as
`--model coremat --model_args pretrained=NAME_OR_PATH,method=corematching,beta=0.2`.
What lmms-eval expects of a model, and where models usually fail it, is said where it is done: `generate_until`
keeps the order and lets exceptions through, `generation_settings` never touches a request's own settings, `clean`
keeps the model, and `repr` names all that the answers depend on, for lmms-eval's response cache.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from PIL import Image

from coremat import __version__
from coremat.checks import whole_number
from coremat.errors import DataError, UnknownNameError, UnsupportedError, first_sentence
from coremat.generate import Answer, Answerer, Conversation, answering
from coremat.memory import is_out_of_memory
from coremat.methods import registry
from coremat.methods.base import Method
from coremat.methods.joined import Joined
from coremat.methods.options import kinds_of, parse_option
from coremat.models.load import LoadedModel, load
from coremat.preprocessing.images import whole_images
from coremat.preprocessing.prompt_format import Preprocessing
from coremat.tasks.digest import digest, sample_seed

DEFAULT_NEW_TOKENS = 128  # where a task says nothing
# What reading a broken image or video raises: Pillow's own, and what escapes from its decoders.
UNREADABLE: tuple[type[BaseException], ...] = (OSError, SyntaxError, Image.DecompressionBombError, DataError)
# Escapes from them too; elsewhere it would be a fault of a task's own functions.
NOT_DECODED: tuple[type[BaseException], ...] = (ValueError, RuntimeError)
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
    """One request: its place in the task, what is shown and asked, and the key of its answer.

    broken: why its image or video can't be read; it is then not asked, and its answer is "".
    """

    key: str
    task: str
    doc_id: int
    text: str
    conversation: list[dict[str, Any]]
    generation: dict[str, Any]
    broken: str | None = None


class AnswerStore(Protocol):
    """Where answers are kept as they are made, and found again after a run was stopped."""

    def get(self, question: Question) -> str | None:
        """The text of an answer made before, under the same key."""

    def add(self, made: Sequence[tuple[Question, Answer | None]], smaller: bool) -> None:
        """Keep what one batch gave, None for what is broken; smaller: it had to be divided for lack of memory."""


class NoStore:
    """Keeps nothing: for a run that can't be resumed."""

    def get(self, question: Question) -> str | None:
        return None

    def add(self, made: Sequence[tuple[Question, Answer | None]], smaller: bool) -> None:
        pass


class CoreMatchingLmms(lmms):
    """A loaded model under one method. Chat type, generation only.

    pretrained: a name or path for `coremat.load`, or a model loaded already. method: a method, or what is typed for
    one; `fields` are options of it, as values or as texts. store: see AnswerStore. on_done: called with the number of
    answers after each batch; log: with what a user should know, in a sentence.
    seed: of what a method draws and of sampling; what a sample draws depends on it, the task and the sample alone.
    max_batch_size is what lmms-eval passes to every model; nothing is searched here.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | LoadedModel,
        method: str | Method = "corematching",
        batch_size: int | str = 1,
        device: str = "auto",
        dtype: str = "auto",
        seed: int = 0,
        max_batch_size: object = None,
        store: AnswerStore | None = None,
        on_done: Callable[[int], None] | None = None,
        log: Callable[[str], None] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        self.batch_size = _whole(batch_size)
        self.loaded = load(pretrained, device, dtype) if isinstance(pretrained, str) else pretrained
        self.seed = seed
        self.method = with_fields(self._method(method), fields)
        self.device = self.loaded.device
        self.store = store or NoStore()
        self.on_done = on_done or (lambda count: None)
        self.log = log or logger.warning
        self.fitting = self.batch_size  # fewer once memory has run out
        settings = json.dumps([self.method.identity(), seed, self.loaded.preprocessing.as_dict()], sort_keys=True)
        self._repr = f"coremat {__version__} (weights {self.loaded.fingerprint}, {self.loaded.dtype}, {settings})"

    def _method(self, method: str | Method) -> Method:
        if isinstance(method, str):
            return registry.parse(method, prune_layer=self.loaded.prune_layer, seed=self.seed)
        return registry.method(method)

    def __repr__(self) -> str:
        return self._repr

    def clean(self) -> None:
        """Keep the model: lmms-eval would delete it after the first task, and it is not this object's own."""

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """The answers in the order of the requests. What goes wrong in the model is raised, never scored as ""."""
        results = self.answer_share(requests, 0, 1)
        return [results[index] for index in range(len(requests))]

    def answer_share(self, requests: Sequence[Instance], rank: int, world: int) -> dict[int, GenerationResult]:
        """The answers of every `world`-th batch from the `rank`-th on, by the index of the request."""
        results: dict[int, GenerationResult] = {}
        with answering(self.loaded, self.method) as answer:
            for batch in islice(batches(requests, self.batch_size), rank, None, world):
                texts = self._texts(answer, [self._question(requests[index]) for index in batch])
                results.update(zip(batch, texts, strict=True))
                self.on_done(len(batch))
        return results

    def _texts(self, answer: Answerer, questions: list[Question]) -> list[GenerationResult]:
        """Found or made. A batch that is found in part is computed whole: its members are what they were together."""
        found = [self.store.get(question) for question in questions]
        if None not in found:
            return [GenerationResult(text) for text in found if text is not None]
        answers = self._answers(answer, questions)
        made = [(question, new) for question, new, old in zip(questions, answers, found, strict=True) if old is None]
        self.store.add(made, smaller=self.fitting < sum(new is not None for new in answers))
        return [_result(new, old) for new, old in zip(answers, found, strict=True)]

    def _answers(self, answer: Answerer, questions: list[Question]) -> list[Answer | None]:
        """None for what is broken; the others together, or in as many parts as memory asks for."""
        whole = [question for question in questions if question.broken is None]
        made: list[Answer] = []
        while len(made) < len(whole):
            made += self._part(answer, whole[len(made) : len(made) + self.fitting])
        rest = iter(made)
        return [None if question.broken else next(rest) for question in questions]

    def _part(self, answer: Answerer, questions: list[Question]) -> list[Answer]:
        """All of these, or none where they were too many: half as many are then tried, from now on."""
        seeds = [sample_seed(self.seed, question.task, question.doc_id) for question in questions]
        conversations = [question.conversation for question in questions]
        try:
            return answer(conversations, questions[0].generation, seeds)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = first_sentence(error)
        if len(questions) == 1:
            question = questions[0]
            raise UnsupportedError(f"memory ran out on question {question.doc_id} of {question.task} alone: {reason}")
        torch.cuda.empty_cache()
        self.fitting = len(questions) // 2
        self.log(f"memory ran out on {len(questions)} questions at once; going on with {self.fitting}")
        return []

    def _question(self, request: Instance) -> Question:
        text, doc_to_messages, settings, doc_id, task, split = request.args
        conversation, broken = self._conversation(doc_to_messages, self.task_dict[task][split], doc_id)
        generation = generation_settings(settings)
        if broken:
            self.log(f"question {doc_id} of {task} counts as wrong: {broken}")
        key = digest(self._repr, task, doc_id, text, conversation, broken is not None, generation)
        return Question(key, task, doc_id, text, conversation, generation, broken)

    def _conversation(self, doc_to_messages: Any, docs: Any, doc_id: int) -> tuple[list[dict[str, Any]], str | None]:
        """What is shown and said, or nothing and the reason."""
        try:
            return read_conversation(doc_to_messages, docs, doc_id, self.loaded.preprocessing), None
        except DataError as error:
            return [], str(error)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise UnsupportedError("this task compares likelihoods of given answers, and coremat only generates answers")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise UnsupportedError("this task talks in several rounds, and coremat answers in one")


def read_conversation(doc_to_messages: Any, docs: Any, doc_id: int, preprocessing: Preprocessing) -> Conversation:
    """What a document shows and says: images are decoded here, and frames of videos read. DataError for those that
    cannot be."""
    with whole_images():
        with _unreadable(*NOT_DECODED):
            doc = docs[doc_id]
        with _unreadable(SystemExit):  # is how some tasks say that a video is missing
            return as_conversation(doc_to_messages(doc), preprocessing)


def as_conversation(messages: Sequence[Mapping[str, Any]], preprocessing: Preprocessing) -> list[dict[str, Any]]:
    """lmms-eval's messages as transformers' chat templates take them: a medium under the name of its type."""
    return [
        {"role": message["role"], "content": [_media(part, preprocessing) for part in message["content"]]}
        for message in messages
    ]


def _media(part: Mapping[str, Any], preprocessing: Preprocessing) -> dict[str, Any]:
    kind = part["type"]
    if kind == "video":
        return {"type": kind, kind: preprocessing.video(part["url"])}
    if isinstance(part.get("url"), Image.Image):
        part["url"].load()
    return {"type": kind, kind: part["text"] if kind == "text" else part["url"]}


@contextmanager
def _unreadable(*others: type[BaseException]) -> Iterator[None]:
    """DataError, with the same words in every process, for what says that an image or a video can't be read."""
    try:
        yield
    except (*UNREADABLE, *others) as error:
        said = re.sub(r" ?<[^<>]* at 0x[0-9a-f]+>", "", str(error))
        raise DataError(" ".join(said.split()) or type(error).__name__) from error


def with_fields(method: Method, fields: Mapping[str, Any]) -> Method:
    """The method with other values of its options: as they are, or as texts in the way that a user types them.

    UnknownNameError for what is no option of it, ConfigError for what is no value. In a joined method an option is
    that of every part that has it.
    """
    parts = (method.tokens, method.by_neuron) if isinstance(method, Joined) else (method,)
    owners = {option: type(part) for part in parts for option in kinds_of(part)}
    for name in fields:
        if name not in owners:
            raise UnknownNameError(f"option of {method.identity()['name']}", name, owners)
    typed = {n: parse_option(owners[n], n, v) if isinstance(v, str) else v for n, v in fields.items()}
    return registry.with_options(method, **typed)


def _result(new: Answer | None, old: str | None) -> GenerationResult:
    if old is not None or new is None:
        return GenerationResult(old or "")
    return GenerationResult(new.text, TokenCounts(output_tokens=new.new_tokens))


def _whole(batch_size: int | str) -> int:
    """lmms-eval gives what was typed."""
    number = int(batch_size) if str(batch_size).isdecimal() else batch_size
    whole_number("batch_size", number, least=1)
    return int(number)


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
    """A task's settings as `coremat.generate.Answerer` takes them, from a copy: lmms-eval uses the original again.

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
