"""Hard questions: those that dense answers right, and wrong when its picture is made smaller.

The division of VTC-Bench (Liao et al., ACL 2026, arXiv 2510.07143): questions for which a small picture suffices say
little about how tokens are chosen. Right is the full score of a question, 1, so that a list that is right in parts is
wrong.
"""

from collections.abc import Iterable, Mapping, Set
from statistics import fmean

from coremat.tasks.run.lines import Line

Question = tuple[str, int]  # task and number of the document
FULL = 1.0


def values(lines: Iterable[Line], metric: str) -> dict[Question, float]:
    """Of one method: the score of each question that has one by this metric."""
    return {(line["task"], line["doc_id"]): line["scores"][metric] for line in lines if metric in line["scores"]}


def hard_questions(dense: Mapping[Question, float], downsampled: Mapping[Question, float]) -> frozenset[Question]:
    """Of the questions that both have."""
    both = dense.keys() & downsampled.keys()
    return frozenset(question for question in both if dense[question] >= FULL > downsampled[question])


def hard_score(own: Mapping[Question, float], hard: Set[Question]) -> float | None:
    """The mean of a method's scores on the hard questions; None where there are none."""
    found = [value for question, value in own.items() if question in hard]
    return fmean(found) if found else None
