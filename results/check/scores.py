"""Scores of two evaluations, row by row: is what was lost more than chance?

Where both runs kept their answers to the same questions, the difference is judged question by question; otherwise by
what is known of its error. Every metric here is better when higher.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from coremat.results.check.rows import (
    DROP_ALONE,
    PAIRED,
    PRESENCE,
    SAME_QUESTIONS,
    TWO_ERRORS,
    Compared,
    Limits,
    Measured,
)
from coremat.results.record.eval import SAMPLES_FILE, Record, read_samples
from coremat.results.statistics import paired_bootstrap

QUESTIONS = ("limit", "seed", "tasks")  # of a config: with these alike, the same questions were asked
ROUNDING = 1e-9  # a drop of exactly the limit is allowed, however its last digit came out
WIDTH = 1.96  # standard errors of a 95 % interval

Key = tuple[str, str, str]


class Score(NamedTuple):
    """Of a row, in its unit."""

    value: float
    stderr: float | None
    samples: int


class Judgement(NamedTuple):
    """By which rule a drop was judged, whether it is more than chance under it, and its interval in points."""

    rule: str
    beyond_chance: bool
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Run:
    """A record, and the folder where its answers may be."""

    record: Record
    folder: Path

    @cached_property
    def scores(self) -> Mapping[Key, Score]:
        """Of the rows that have one."""
        return {
            (row.method, row.task, row.metric): Score(row.score, row.stderr, row.samples)
            for row in self.record.rows
            if row.score is not None
        }

    @cached_property
    def answers(self) -> Mapping[Key, Mapping[str, float]]:
        """The score of each question, where the folder holds it."""
        found: dict[Key, dict[str, float]] = {}
        samples = read_samples(self.folder).to_dict("records") if (self.folder / SAMPLES_FILE).exists() else []
        for sample in samples:
            for metric, score in _numbers(sample.get("scores")):
                key = (str(sample.get("method")), str(sample.get("task")), metric)
                found.setdefault(key, {})[str(sample.get("doc_id"))] = score
        return found


def _numbers(scores: Any) -> list[tuple[str, float]]:
    pairs = scores.items() if isinstance(scores, dict) else ()
    return [(metric, float(score)) for metric, score in pairs if isinstance(score, (int, float)) and score == score]


def compare_scores(run: Run, baseline: Run, limits: Limits) -> tuple[Compared, ...]:
    """Every row of either record that has a score, those of the baseline first."""
    added = [key for key in run.scores if key not in baseline.scores]
    return tuple(_compare(key, run, baseline, limits) for key in (*baseline.scores, *added))


def _compare(key: Key, run: Run, baseline: Run, limits: Limits) -> Compared:
    method, task, metric = key
    now, before = run.scores.get(key), baseline.scores.get(key)
    own_scale = any(one.record.has_own_scale(task, metric) for one in (run, baseline))
    judgement, drop, why = Judgement(PRESENCE, False), None, ""
    if now and before:
        drop, judgement = before.value - now.value, _judge(key, run, baseline)
        if judgement.beyond_chance and drop > limits.max_drop * _point(before, own_scale) + ROUNDING:
            why = _fell(now, before, own_scale)
    elif before:
        why = f"{_lacks(key, run.record)}, and was {before.value:.2f}"
    return Compared(
        method=method,
        where=task,
        measure=metric,
        now=_measured(now),
        baseline=_measured(before),
        rule=judgement.rule,
        drop=drop,
        interval=judgement.interval,
        why=why,
        own_scale=own_scale,
    )


def _point(before: Score, own_scale: bool) -> float:
    """What --max-drop counts: a point, or one per cent of the baseline's score where the scale is not known."""
    return abs(before.value) / 100 if own_scale else 1.0


def _fell(now: Score, before: Score, own_scale: bool) -> str:
    drop = before.value - now.value
    if own_scale:
        return f"fell by {drop:.4g}, from {before.value:.4g} to {now.value:.4g}"
    return f"fell by {drop:.2f} points, from {before.value:.2f} to {now.value:.2f}"


def _lacks(key: Key, record: Record) -> str:
    there = any((row.method, row.task, row.metric) == key for row in record.rows)
    return "has no score" if there else "is missing"


def _measured(score: Score | None) -> Measured | None:
    return None if score is None else Measured(score.value, stderr=score.stderr)


def _judge(key: Key, run: Run, baseline: Run) -> Judgement:
    """By the most that is known: single answers, else that the questions were the same, else two standard errors."""
    now, before = run.scores[key], baseline.scores[key]
    pairs = _pairs(key, run, baseline)
    if pairs:
        _, low, high = paired_bootstrap(*pairs)
        return Judgement(PAIRED, low > 0, (low, high))
    if now.samples == before.samples and _same_questions(run.record.config, baseline.record.config):
        return Judgement(SAME_QUESTIONS, True)
    if now.stderr is None or before.stderr is None:
        return Judgement(DROP_ALONE, True)
    return Judgement(TWO_ERRORS, before.value - now.value > WIDTH * math.hypot(now.stderr, before.stderr))


def _same_questions(config: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(name in config and name in other and config[name] == other[name] for name in QUESTIONS)


def _pairs(key: Key, run: Run, baseline: Run) -> tuple[list[float], list[float]] | None:
    """Baseline's and own score of every question, in points; None unless both have them of the same questions.

    What is not the mean of its questions' scores (an F1, a sum) has no such pairs.
    """
    own, others = run.answers.get(key, {}), baseline.answers.get(key, {})
    if not own or own.keys() != others.keys():
        return None
    scale = _scale([(run.scores[key].value, fmean(own.values())), (baseline.scores[key].value, fmean(others.values()))])
    if scale is None:
        return None
    return [scale * others[question] for question in own], [scale * own[question] for question in own]


def _scale(means: list[tuple[float, float]]) -> float | None:
    """What makes each mean of single scores its row's score; None if nothing does."""
    scale = next((score / mean for score, mean in means if mean), 1.0)
    fits = all(math.isclose(score, scale * mean, rel_tol=1e-6, abs_tol=ROUNDING) for score, mean in means)
    return scale if fits else None
