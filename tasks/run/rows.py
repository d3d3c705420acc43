"""From the journalled lines of a run to the rows of its record: means over samples, times as medians."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, median
from typing import Any

from coremat.names import DENSE
from coremat.results.record.eval import Row
from coremat.results.statistics import standard_error
from coremat.tasks.catalogue import PERCENT, SCALES, TaskInfo
from coremat.tasks.run.costs import COSTS
from coremat.tasks.run.hard import hard_questions, hard_score, values
from coremat.tasks.run.lines import Line

MEDIANS = ("first_token_ms", "decode_ms_per_token", "selection_ms")


@dataclass(frozen=True)
class Metric:
    """A task's metric as lmms-eval aggregated it for one method, under the task's name.

    tasks: whose answers it is about: the task itself, or those of which it is the mean. scale: value * scale is the
    record's score; None: the catalogue does not describe the metric, and the value is the score.
    """

    method: str
    tasks: tuple[str, ...]
    task: str
    name: str
    value: float
    scale: float | None

    def scaled(self, value: float) -> float:
        """A value of this metric, or its error, in the unit of the record's score."""
        return value if self.scale is None else value * self.scale


def find_metrics(method: str, task: str, names: Sequence[str], results: Mapping[str, Any]) -> list[Metric]:
    """The named metrics in lmms-eval's results of one task, those without a number (submissions) left out.

    Its keys are `metric,filter`, of which the first filter counts. The scale never depends on a value.
    """
    values = {key.partition(",")[0]: value for key, value in reversed(list(results.items()))}
    found = ((name, float(values[name])) for name in names if _is_number(values.get(name)))
    return [Metric(method, (task,), task, name, value, SCALES.get((task, name))) for name, value in found]


def own_scales(metrics: Iterable[Metric]) -> dict[str, list[str]]:
    """By task, the metrics whose scores are as lmms-eval gave them, since the catalogue does not describe them."""
    found: dict[str, list[str]] = {}
    for task, name in dict.fromkeys((metric.task, metric.name) for metric in metrics if metric.scale is None):
        found.setdefault(task, []).append(name)
    return found


def means_of_tasks(found: Sequence[tuple[TaskInfo, list[Metric]]]) -> list[Metric]:
    """All metrics, and before those of a name that stands for several tasks their mean under that name."""
    metrics: list[Metric] = []
    for info, parts in groupby(found, key=lambda pair: pair[0]):
        ours = [metric for _, some in parts for metric in some]
        if len(info.tasks) > 1:
            metrics += [mean for score in info.scores if (mean := _mean(info, score.metric, ours))]
        metrics += ours
    return metrics


def _mean(info: TaskInfo, name: str, metrics: Sequence[Metric]) -> Metric | None:
    same = [metric for metric in metrics if metric.name == name]
    if len(same) < len(info.tasks):
        return None
    return Metric(same[0].method, info.tasks, info.name, name, fmean(m.value for m in same), same[0].scale)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def make_rows(lines: Iterable[Line], metrics: Sequence[Metric], downsampled: str | None = None) -> tuple[Row, ...]:
    """One row per metric, over the samples that have it; over all of the task if it is not scored sample by sample.

    downsampled: the method, as typed, whose wrong answers tell the hard questions; None: no question is hard or easy.
    """
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["method"], line["task"]), []).append(line)
    whole = {(one.task, one.name): one for one in metrics if one.method == DENSE}
    rows = []
    for one in metrics:
        own, dense = (_lines(groups, method, one) for method in (one.method, DENSE))
        smaller = [] if downsampled is None else _lines(groups, downsampled, one)
        hard = _hard(whole.get((one.task, one.name)), own, dense, smaller)
        rows.append(_row(one, own, dense, hard))
    return tuple(rows)


def _lines(groups: Mapping[tuple[str, str], list[Line]], method: str, metric: Metric) -> list[Line]:
    return [line for task in metric.tasks for line in groups.get((method, task), [])]


def _hard(metric: Metric | None, own: list[Line], dense: list[Line], smaller: list[Line]) -> dict[str, Any]:
    """A method's score on the hard questions, and their number. metric: of dense; a mean of tasks divides nothing, nor
    does a score that is no mean of shares, in per cent: a sum of points has no full score."""
    if metric is None or len(metric.tasks) > 1:
        return {}
    whole, downsampled = values(dense, metric.name), values(smaller, metric.name)
    factor = _factor(metric, list(whole.values()))
    if not downsampled or factor is None or metric.scaled(factor) != PERCENT:
        return {}
    hard = hard_questions(whole, downsampled)
    score = hard_score(values(own, metric.name), hard)
    return {"hard_score": None if score is None else PERCENT * score, "hard_samples": len(hard)}


def _row(metric: Metric, lines: list[Line], dense: list[Line], hard: Mapping[str, Any]) -> Row:
    chosen = [line for line in lines if metric.name in line["scores"]] or lines
    return Row(
        method=metric.method,
        task=metric.task,
        metric=metric.name,
        score=metric.scaled(metric.value),
        stderr=_stderr(metric, chosen),
        samples=len(chosen),
        agreement_with_dense=_agreement(chosen, dense),
        **hard,
        **{name: _reduced(fmean, chosen, name) for name in COSTS},
        **{name: _reduced(median, chosen, name) for name in MEDIANS},
    )


def _reduced(reduce: Callable[[list[float]], float], lines: list[Line], name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name) is not None]  # nothing was measured of a broken image
    return reduce(values) if values else None


def _stderr(metric: Metric, lines: list[Line]) -> float | None:
    """Only of a metric that is the mean of its samples' values, as a share or in per cent."""
    found = list(values(lines, metric.name).values())
    error, factor = standard_error(found), _factor(metric, found)
    return None if error is None or factor is None else metric.scaled(error * factor)


def _factor(metric: Metric, found: Sequence[float]) -> int | None:
    """What makes the mean of its samples' values the metric's: 1, 100 for per cent, or None if nothing does."""
    return next((one for one in (1, 100) if found and math.isclose(one * fmean(found), metric.value)), None)


def _agreement(lines: list[Line], dense: list[Line]) -> float | None:
    """Per cent of the answers that are those of dense, letter by letter; what could not be asked is none."""
    told = {(line["task"], line["doc_id"]): line["answer"] for line in dense if not line.get("broken")}
    alike = [line["answer"] == told[place] for line in lines if (place := (line["task"], line["doc_id"])) in told]
    return 100 * fmean(alike) if alike else None
