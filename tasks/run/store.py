"""The journal as one method on one task sees it, and what a line of it says."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coremat.generate import Answer
from coremat.tasks.lmms_eval.load import LoadedTask
from coremat.tasks.run.costs import costs
from coremat.tasks.run.journal import Journal
from coremat.tasks.run.lines import Line

if TYPE_CHECKING:  # it takes lmms-eval along
    from coremat.tasks.lmms_eval.model import Question


class TaskStore:
    """The journal for one method on one task: an `AnswerStore` of `lmms_eval.model`, and then the scored lines."""

    def __init__(self, journal: Journal, method: str, task: LoadedTask) -> None:
        self.journal = journal
        self.method = method
        self.task = task
        self.keys: dict[int, str] = {}

    def get(self, question: "Question") -> str | None:
        self.keys[question.doc_id] = question.key
        line = self.journal.lines.get(question.key)
        return None if line is None else line["answer"]

    def add(self, made: Sequence[tuple["Question", Answer | None]], smaller: bool) -> None:
        self.journal.append([self._line(question, answer, smaller) for question, answer in made])

    def _line(self, question: "Question", answer: Answer | None, smaller: bool) -> Line:
        doc = self.task.docs[question.doc_id]
        return {
            "method": self.method,
            "task": self.task.name,
            "doc_id": question.doc_id,
            "kind": doc.get("kind"),
            "question": question.text,
            "answer": "" if answer is None else answer.text,
            "target": self.task.task.doc_to_target(doc),
            "correct": None,
            "scores": None,
            "broken": question.broken,
            "smaller_batch": smaller,
            **({} if answer is None else _measured(answer)),
            "key": question.key,
        }

    def scored(self, samples: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[Line]:
        """The task's lines in the order of its questions, each with its value of every metric that it has.

        `correct` is the first metric's, 0 to 1; null where that is not scored sample by sample.
        """
        first = {sample["doc_id"]: sample for sample in reversed(samples)}  # of a task's filters
        lines = []
        for doc_id, sample in sorted(first.items()):
            values = {name: _value(name, sample.get(name)) for name in metrics}
            scores = {name: value for name, value in values.items() if value is not None}
            line = self.journal.lines[self.keys[doc_id]]
            lines.append({**line, "method": self.method, "correct": scores.get(metrics[0]), "scores": scores})
        return lines


def _value(metric: str, value: Any) -> float | None:
    """One sample's value: a number, or the number among what a task hands to its own aggregation."""
    if isinstance(value, Mapping):
        if "accuracy" in metric and "Correctness" in value:
            return float("yes" in str(value["Correctness"]).lower())
        value = value.get("score")
    return float(value) if isinstance(value, (int, float)) else None


def _measured(answer: Answer) -> Line:
    """What an answer took: its costs, and times in ms."""
    stats, decode = answer.stats, answer.decode_seconds_per_token
    return {
        "new_tokens": answer.new_tokens,
        "kept": list(stats.kept),
        **costs(stats),
        "first_token_ms": answer.first_token_seconds * 1000,
        "decode_ms_per_token": None if decode is None else decode * 1000,
        "selection_ms": stats.selection_seconds * 1000,
        "knees_differ": stats.knees_differ,
    }
