"""From the journalled lines of a run to the rows of its record: means over samples, times as medians."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from coremat.results.record import Row
from coremat.results.statistics import standard_error
from coremat.tasks.journal import Line

DENSE = "dense"
MEANS = ("image_tokens", "image_tokens_kept", "neurons", "neurons_kept", "prefill_tflops", "kv_cache_mib")
MEDIANS = ("prefill_ms", "decode_ms_per_token", "selection_ms")


@dataclass(frozen=True)
class Metric:
    """A task's metric as lmms-eval aggregated it for one method; `scale` makes it per cent."""

    method: str
    task: str
    name: str
    value: float
    scale: float


def find_metrics(
    method: str, task: str, names: Sequence[str], scale: float | None, results: Mapping[str, Any]
) -> list[Metric]:
    """The named metrics in lmms-eval's results of one task, those without a number (submissions) left out.

    Its keys are `metric,filter`, of which the first filter counts; its values are shares or points, and what is 1 at
    most is taken for a share.
    """
    values = {key.partition(",")[0]: value for key, value in reversed(list(results.items()))}
    found = ((name, values[name]) for name in names if _is_number(values.get(name)))
    scales = ((name, float(value), scale or (100.0 if abs(value) <= 1 else 1.0)) for name, value in found)
    return [Metric(method, task, name, value, factor) for name, value, factor in scales]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def make_rows(lines: Iterable[Line], metrics: Sequence[Metric]) -> tuple[Row, ...]:
    """One row per metric, over the samples that have it; over all of the task if it is not scored sample by sample."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["method"], line["task"]), []).append(line)
    return tuple(
        _row(metric, groups[metric.method, metric.task], groups.get((DENSE, metric.task))) for metric in metrics
    )


def _row(metric: Metric, lines: list[Line], dense: list[Line] | None) -> Row:
    chosen = [line for line in lines if metric.name in line["scores"]] or lines
    return Row(
        method=metric.method,
        task=metric.task,
        metric=metric.name,
        score=metric.value * metric.scale,
        stderr=_stderr(metric, chosen),
        samples=len(chosen),
        agreement_with_dense=_agreement(chosen, dense),
        **{name: _reduced(fmean, chosen, name) for name in MEANS},
        **{name: _reduced(median, chosen, name) for name in MEDIANS},
    )


def _reduced(reduce: Callable[[list[float]], float], lines: list[Line], name: str) -> float | None:
    values = [line[name] for line in lines if line[name] is not None]
    return reduce(values) if values else None


def _stderr(metric: Metric, lines: list[Line]) -> float | None:
    """Only of a metric that is the mean of its samples' values."""
    values = [line["scores"][metric.name] for line in lines if metric.name in line["scores"]]
    if not values or not math.isclose(fmean(values), metric.value, abs_tol=1e-9):
        return None
    error = standard_error(values)
    return None if error is None else error * metric.scale


def _agreement(lines: list[Line], dense: list[Line] | None) -> float | None:
    """Per cent of the answers that are those of dense, letter by letter."""
    if dense is None:
        return None
    told = {line["doc_id"]: line["answer"] for line in dense}
    return 100 * fmean(line["answer"] == told[line["doc_id"]] for line in lines)
