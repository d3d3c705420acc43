"""Fidelity of two records, row by row: KL, which is better when lower, and agreement, which is better when higher.

Where both runs kept their lines of the same questions, and the dense answers to them are as long, the difference is
judged question by question: by each question's sum over the tokens, as a share of the mean length, of which the mean
over questions is the record's mean over tokens. Otherwise by the standard errors of both.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from coremat.results.check.rows import (
    DROP_ALONE,
    KL_ALONE,
    KL_PAIRED,
    KL_TWO_ERRORS,
    LEAST_RISE,
    MOST_RISE,
    PAIRED,
    PRESENCE,
    TWO_ERRORS,
    Compared,
    Limits,
    Measured,
)
from coremat.results.check.scores import ROUNDING, WIDTH
from coremat.results.record.eval import SAMPLES_FILE, read_samples
from coremat.results.record.fidelity import FidelityRecord, FidelityRow
from coremat.results.statistics import paired_bootstrap

Place = tuple[str, str]  # method and source


class Measure(NamedTuple):
    """Of a row and of a journalled line, by one name; rules: paired, by two errors, alone."""

    name: str
    scale: float
    rules: tuple[str, str, str]
    lower_is_better: bool


KL = Measure("kl", 1, (KL_PAIRED, KL_TWO_ERRORS, KL_ALONE), True)
AGREEMENT = Measure("agreement", 100, (PAIRED, TWO_ERRORS, DROP_ALONE), False)


@dataclass(frozen=True)
class FidelityRun:
    """A record, and the folder where its lines may be."""

    record: FidelityRecord
    folder: Path

    @cached_property
    def rows(self) -> Mapping[Place, FidelityRow]:
        """Of the rows that have any question."""
        return {(row.method, row.source): row for row in self.record.rows if row.questions}

    @cached_property
    def lines(self) -> Mapping[Place, Mapping[str, Mapping[str, Sequence[float]]]]:
        """By question: the values of each position, where the folder holds them."""
        found: dict[Place, dict[str, Mapping[str, Sequence[float]]]] = {}
        samples = read_samples(self.folder).to_dict("records") if (self.folder / SAMPLES_FILE).exists() else []
        for line in samples:
            place = (str(line.get("method")), str(line.get("source")))
            found.setdefault(place, {})[str(line.get("doc_id"))] = {name: line[name] for name in ("kl", "agreement")}
        return found


def compare_fidelity(run: FidelityRun, baseline: FidelityRun, limits: Limits) -> tuple[Compared, ...]:
    """KL and agreement of every method on every source of either record, those of the baseline first."""
    places = dict.fromkeys((*baseline.rows, *run.rows))
    return tuple(_compare(place, measure, run, baseline, limits) for place in places for measure in (KL, AGREEMENT))


def _compare(place: Place, measure: Measure, run: FidelityRun, baseline: FidelityRun, limits: Limits) -> Compared:
    now, before = (_measured(one.rows.get(place), measure) for one in (run, baseline))
    rule, why, drop, interval = PRESENCE, "", None, None
    if now and before:
        drop = before.value - now.value
        rule, beyond, interval = _judge(place, measure, run, baseline)
        loss, most = (-drop, most_rise(before.value)) if measure.lower_is_better else (drop, limits.max_drop)
        if beyond and loss > most + ROUNDING:
            why = _changed(measure, before.value, now.value)
    elif before:
        why = f"is missing, and was {before.value:.4g}"
    method, source = place
    return Compared(
        method=method,
        where=source,
        measure=measure.name,
        now=now,
        baseline=before,
        rule=rule,
        drop=drop,
        interval=interval,
        why=why,
        in_nats=measure is KL,
    )


def most_rise(before: float) -> float:
    """Nats that a KL may rise."""
    return max(MOST_RISE * before, LEAST_RISE)


def _measured(row: FidelityRow | None, measure: Measure) -> Measured | None:
    value = None if row is None else getattr(row, measure.name)
    return None if value is None else Measured(value, stderr=getattr(row, f"{measure.name}_se"))


def _changed(measure: Measure, before: float, now: float) -> str:
    if measure.lower_is_better:
        return f"rose by {now - before:.4f} nats per token, from {before:.4f} to {now:.4f}"
    return f"fell by {before - now:.2f} points, from {before:.2f} to {now:.2f}"


def _judge(
    place: Place, measure: Measure, run: FidelityRun, baseline: FidelityRun
) -> tuple[str, bool, tuple[float, float] | None]:
    """The rule, whether the change for the worse is more than chance under it, and the interval of the drop."""
    paired, errors, alone = measure.rules
    pairs = _pairs(place, measure, run, baseline)
    if pairs:
        _, low, high = paired_bootstrap(*pairs)
        return paired, high < 0 if measure.lower_is_better else low > 0, (low, high)
    now, before = (_measured(one.rows[place], measure) for one in (run, baseline))
    if now is None or before is None or now.stderr is None or before.stderr is None:
        return alone, True, None
    return errors, abs(before.value - now.value) > WIDTH * math.hypot(now.stderr, before.stderr), None


def _pairs(
    place: Place, measure: Measure, run: FidelityRun, baseline: FidelityRun
) -> tuple[list[float], list[float]] | None:
    """The baseline's and the own share of every question in the mean; None unless both have the same tokens."""
    own, others = run.lines.get(place, {}), baseline.lines.get(place, {})
    if not own or own.keys() != others.keys():
        return None
    lengths = {question: len(line["kl"]) for question, line in own.items()}
    if any(len(others[question]["kl"]) != length for question, length in lengths.items()):
        return None
    factor = measure.scale * len(own) / sum(lengths.values())
    shares = [[factor * sum(side[question][measure.name]) for question in own] for side in (others, own)]
    means = [sum(share) / len(share) for share in shares]
    rows = (getattr(one.rows[place], measure.name) for one in (baseline, run))
    fits = all(math.isclose(row, mean, rel_tol=1e-6, abs_tol=ROUNDING) for row, mean in zip(rows, means, strict=True))
    return (shares[0], shares[1]) if fits else None
