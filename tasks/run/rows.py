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
from coremat.tasks.catalogue import SCALES, TaskInfo
from coremat.tasks.run.lines import Line

MEANS = (
    "image_tokens",
    "image_tokens_kept",
    "neurons",
    "neurons_kept",
    "ffn_read_mib",
    "prefill_tflops",
    "kv_cache_mib",
)
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


def make_rows(lines: Iterable[Line], metrics: Sequence[Metric]) -> tuple[Row, ...]:
    """One row per metric, over the samples that have it; over all of the task if it is not scored sample by sample."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["method"], line["task"]), []).append(line)
    return tuple(_row(one, _lines(groups, one.method, one), _lines(groups, DENSE, one)) for one in metrics)


def _lines(groups: Mapping[tuple[str, str], list[Line]], method: str, metric: Metric) -> list[Line]:
    return [line for task in metric.tasks for line in groups.get((method, task), [])]


def _row(metric: Metric, lines: list[Line], dense: list[Line]) -> Row:
    chosen = [line for line in lines if metric.name in line["scores"]] or lines
    return Row(
        method=metric.method,
        task=metric.task,
        metric=metric.name,
        score=metric.scaled(metric.value),
        stderr=_stderr(metric, chosen),
        samples=len(chosen),
        agreement_with_dense=_agreement(chosen, dense),
        **{name: _reduced(fmean, chosen, name) for name in MEANS},
        **{name: _reduced(median, chosen, name) for name in MEDIANS},
    )


def _reduced(reduce: Callable[[list[float]], float], lines: list[Line], name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name) is not None]  # nothing was measured of a broken image
    return reduce(values) if values else None


def _stderr(metric: Metric, lines: list[Line]) -> float | None:
    """Only of a metric that is the mean of its samples' values, as a share or in per cent."""
    values = [line["scores"][metric.name] for line in lines if metric.name in line["scores"]]
    factor = next((one for one in (1, 100) if values and math.isclose(one * fmean(values), metric.value)), None)
    error = standard_error(values)
    return None if error is None or factor is None else metric.scaled(error * factor)


def _agreement(lines: list[Line], dense: list[Line]) -> float | None:
    """Per cent of the answers that are those of dense, letter by letter; what could not be asked is none."""
    told = {(line["task"], line["doc_id"]): line["answer"] for line in dense if not line.get("broken")}
    alike = [line["answer"] == told[place] for line in lines if (place := (line["task"], line["doc_id"])) in told]
    return 100 * fmean(alike) if alike else None
