"""How an answer on a video is scored: by exact match, and by a judge where one is attached (Video-ChatGPT's protocol).

Exact match compares whole answers, as `tasks.bundled.scoring` normalises them. The target is a single word, so a right
answer inside a sentence counts as wrong; the judge's accuracy, of which the paper's tables are made, lets it pass.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coremat.tasks.bundled.scoring import exact_match

Verdict = Callable[[str, str, str], tuple[bool, int]]
"""Question, answer and prediction in; whether they match, and how well from 0 to 5."""


def exact_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    return {"exact_match": exact_match(results[0], doc["answer"])}


def judged_results(verdict: Verdict, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """What the verdict says, and the exact match; in the place of the task's `process_results`."""
    right, score = verdict(doc["question"], doc["answer"], results[0])
    return {"judge_accuracy": float(right), "judge_score": float(score), **exact_results(doc, results)}
