"""One fidelity run: the dense answer to each question, every method along it, journalled line by line, as a record.

Questions are taken in groups, so that a method is applied once per group and not per question, and no more than a
group's dense logits are in memory. Every line is of one question, asked alone: neither groups nor a stop between them
change what it says.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from coremat import __version__
from coremat.cost.flops import CONVENTION
from coremat.environment import environment
from coremat.errors import ConfigError, DataError, UnsupportedError, first_sentence
from coremat.fidelity import DenseAnswer, Fidelity, dense_answer, follow
from coremat.generate import Conversation, prepare, question
from coremat.memory import is_out_of_memory
from coremat.methods.base import Method
from coremat.methods.dense import Dense
from coremat.models.known import known_name
from coremat.models.load import LoadedModel
from coremat.names import DENSE
from coremat.progress import Progress, Step
from coremat.results.plots.fidelity import write_plots
from coremat.results.record.eval import SCHEMA
from coremat.results.record.fidelity import FidelityRecord, FidelityRow
from coremat.results.tables.fidelity import write_tables
from coremat.runtime.recorded import recorded
from coremat.runtime.session import Session, apply
from coremat.tasks.digest import digest, sample_seed
from coremat.tasks.fidelity.questions import Question, Questions
from coremat.tasks.fidelity.rows import make_row
from coremat.tasks.run.costs import costs
from coremat.tasks.run.journal import Journal, claim_folder
from coremat.tasks.run.lines import Line

GROUP = 8  # questions
GROUP_BYTES = 1 << 28  # of dense logits

Log = Callable[[str], None]
Made = TypeVar("Made")


@dataclass
class Asked:
    """A question on its way: what is shown and said, the key of each method's line, the methods whose line is missing,
    and, once they are there, the model's inputs and the dense answer."""

    question: Question
    conversation: Conversation
    keys: Mapping[str, str]
    missing: Sequence[str]
    inputs: dict[str, Any] = field(default_factory=dict)
    answer: DenseAnswer | None = None


def measure_fidelity(
    loaded: LoadedModel,
    questions: Questions,
    methods: Mapping[str, Method],
    new_tokens: int = 64,
    limit: int | None = None,
    seed: int = 0,
    output: Path = Path("coremat-fidelity"),
    progress: Progress = lambda step: None,
    skipped: Mapping[str, str] | None = None,
    log: Log = lambda text: None,
) -> FidelityRecord:
    """Ask `methods` along the dense answers to `questions`, write record, tables and plots into `output`, and return
    the record. The dense model is among the methods, asked first where it was not given.

    new_tokens: of a dense answer, at most. limit: for the record: with what the questions were limited. seed: of all
    that is drawn. skipped: methods that were asked for and cannot be run, with the reason. log: takes what a user
    should know. The same call on the same folder goes on where it was stopped. DataError where no question can be
    asked, OutputError for another run's folder or a full disk.
    """
    if new_tokens < 1:
        raise ConfigError(f"new_tokens is {new_tokens}; accepted: at least 1.")
    methods = methods if _has_dense(methods) else {DENSE: Dense(), **methods}
    identity = _identity(loaded, questions, methods, new_tokens, limit, seed)
    claim_folder(output, identity)
    with questions.around(output), Journal(output) as journal:
        run = _Run(loaded, questions.load(), methods, new_tokens, seed, journal, progress, log)
        return run.record(identity, skipped or {}, output)


def _has_dense(methods: Mapping[str, Method]) -> bool:
    return any(isinstance(method, Dense) for method in methods.values())


def _identity(
    loaded: LoadedModel,
    questions: Questions,
    methods: Mapping[str, Method],
    new_tokens: int,
    limit: int | None,
    seed: int,
) -> dict[str, Any]:
    """What makes two runs the same run."""
    return {
        "kind": FidelityRecord.kind,
        "model": loaded.name,
        "known_as": known_name(loaded.name),
        "asked": questions.identity,
        "methods": {name: recorded(method) for name, method in methods.items()},
        "new_tokens": new_tokens,
        "limit": limit,
        "seed": seed,
        "weights": loaded.fingerprint,
        "preprocessing": loaded.preprocessing.as_dict(),
        "device": loaded.device.partition(":")[0],
        "dtype": loaded.dtype,
        "coremat": __version__,
        "schema": SCHEMA,
    }


@dataclass
class _Run:
    """All methods on all questions. broken: what could not be asked, with the reason; keys: the method and the key of
    every line that there is to be, in the order of the questions."""

    loaded: LoadedModel
    questions: Sequence[Question]
    methods: Mapping[str, Method]
    new_tokens: int
    seed: int
    journal: Journal
    progress: Progress
    log: Log
    broken: list[dict[str, Any]] = field(default_factory=list)
    keys: list[tuple[str, str]] = field(default_factory=list)

    def record(self, identity: Mapping[str, Any], skipped: Mapping[str, str], output: Path) -> FidelityRecord:
        """Ask what there is not; write journal, record, tables and plots."""
        for group in self._groups():
            self._answer(group)
            for method in self.methods:
                self._follow(method, [one for one in group if one.answer and method in one.missing])
        lines = [line for method in self.methods for line in self._lines(method)]
        if not lines:
            raise DataError(self._none_left())
        self.journal.finish(lines)
        sources = list(dict.fromkeys(one.source for one in self.questions))
        rows = tuple(_row(method, source, lines) for source in sources for method in self.methods)
        config = {
            **identity,
            "sources": sources,
            "flops_convention": CONVENTION,
            "prompt_tokens": {row.source: row.prompt_tokens for row in rows if row.prompt_tokens is not None},
            "skipped": dict(skipped),
            "broken": self.broken,
        }
        where = environment(self.loaded.device, self.loaded.dtype)
        record = FidelityRecord(self.loaded.name, rows, config, where)
        record.write(output)
        write_tables(record, output)
        write_plots(record, output)
        return record

    def _lines(self, method: str) -> Iterator[Line]:
        """Those of a method, in the order of the questions."""
        for own, key in self.keys:
            if own == method and key in self.journal.lines:
                yield {**self.journal.lines[key], "method": method}

    def _none_left(self) -> str:
        first = self.broken[0]["reason"] if self.broken else "there is none"
        return f"no question is left of {len(self.questions)}; the first: {first}."

    # --- what to ask -------------------------------------------------------------------------------------------------

    def _groups(self) -> Iterator[list[Asked]]:
        """Questions with a line missing, as many at a time as memory may hold the dense logits of."""
        vocabulary = self.loaded.model.get_output_embeddings().weight.shape[0]
        size = max(1, min(GROUP, GROUP_BYTES // (4 * self.new_tokens * vocabulary)))
        asked = self._asked()
        while group := list(islice(asked, size)):
            yield group

    def _asked(self) -> Iterator[Asked]:
        for one in self.questions:
            conversation = self._tried(one, one.read)
            if conversation is None:
                continue
            keys = {method: self._key(method, one, conversation) for method in self.methods}
            self.keys += keys.items()
            missing = [method for method, key in keys.items() if key not in self.journal.lines]
            self._show("asked before", len(keys) - len(missing))
            if missing:
                yield Asked(one, conversation, keys, missing)

    def _key(self, method: str, one: Question, conversation: Conversation) -> str:
        """A hash of all that a line depends on."""
        loaded = self.loaded
        fixed = (FidelityRecord.kind, __version__, loaded.fingerprint, loaded.dtype, loaded.preprocessing.as_dict())
        settings = (self.methods[method].identity(), self.seed, self.new_tokens)
        return digest(*fixed, *settings, one.source, one.doc_id, conversation)

    # --- asking ------------------------------------------------------------------------------------------------------

    def _answer(self, group: Sequence[Asked]) -> None:
        """The dense answers, where there are any."""
        with apply(self.loaded.model, Dense()) as session:
            for one in group:
                self._show(f"{DENSE} answers", 0)
                one.answer = self._tried(one.question, partial(self._dense_answer, session, one))

    def _dense_answer(self, session: Session, one: Asked) -> DenseAnswer:
        one.inputs = prepare(self.loaded, [one.conversation])
        return dense_answer(session, one.inputs, self.new_tokens)

    def _follow(self, method: str, group: Sequence[Asked]) -> None:
        if not group:
            return
        with apply(self.loaded.model, self.methods[method]) as session:
            for one in group:
                line = self._tried(one.question, partial(self._line, session, method, one), method)
                if line is not None:
                    self.journal.append([line])
                    self._show(f"{method} follows", 1)

    def _line(self, session: Session, method: str, one: Asked) -> Line:
        source, doc_id, answer = one.question.source, one.question.doc_id, one.answer
        assert answer is not None
        session.sample_seeds = [sample_seed(self.seed, source, doc_id)]
        found = follow(session, one.inputs, answer, question(one.conversation))
        text = self.loaded.tokenizer.decode(answer.tokens, skip_special_tokens=True).strip()
        asked = {"method": method, "source": source, "doc_id": doc_id, "question": question(one.conversation)}
        return {**asked, "answer": text, **_measured(found), "key": one.keys[method]}

    def _tried(self, one: Question, make: Callable[[], Made], method: str | None = None) -> Made | None:
        """What `make` gives; None where this question cannot be asked (of this method alone, if it is named), which is
        told and counted. UnsupportedError where memory runs out."""
        try:
            return make()
        except (DataError, UnsupportedError) as error:
            self._tell(one, str(error).rstrip("."), method)
            return None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UnsupportedError(
                f"memory ran out on {_name(one)} alone; what is done is kept: {first_sentence(error)}"
            ) from error

    def _tell(self, one: Question, reason: str, method: str | None) -> None:
        whose = {} if method is None else {"method": method}
        self.broken.append({"source": one.source, "doc_id": one.doc_id, **whose, "reason": reason})
        self.log(f"{_name(one)} is left out{'' if method is None else f' of {method}'}: {reason}")
        self._show("left out", len(self.methods) if method is None else 1)

    def _show(self, description: str, new: int) -> None:
        self.progress(Step(len(self.methods) * len(self.questions), description, new))


def _name(one: Question) -> str:
    return f"question {one.doc_id} of {one.source}"


def _measured(found: Fidelity) -> Line:
    values = {"kl": found.kl, "agreement": found.agree.double(), "nll": found.nll}
    lists = {name: value.tolist() for name, value in values.items()}
    return {**lists, "first_difference": found.first_difference, **costs(found.stats)}


def _row(method: str, source: str, lines: Sequence[Line]) -> FidelityRow:
    return make_row(method, source, [one for one in lines if (one["method"], one["source"]) == (method, source)])
