"""What an evaluation would run, said before it does: questions, downloads, and the time by a bench of the same model.

Nothing is loaded but the heads of local data files. Time is samples x (image and prompt + new tokens x step), one
prompt after another, from the medians of the bench at batch 1.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from coremat.errors import ConfigError
from coremat.results.record.bench import EAGER, IN_PLACE, BenchRecord
from coremat.results.record.bench_rows import DECODE, PREFILL, VISION
from coremat.results.tables.bench_costs import longest
from coremat.tasks.bundled.video_qa.data import OWN_DATASETS
from coremat.tasks.catalogue import QUESTIONS_AS_THEY_ARE, TaskInfo, resolve_tasks
from coremat.tasks.data.local import missing, questions_there, require
from coremat.tasks.lmms_eval.load import check_limit, limited
from coremat.tasks.paper.presets import known_name

SHORT_ANSWER, LONG_ANSWER = 4, 64  # tokens: of a word or a letter, and where the question asks for neither
MS_PER_HOUR = 3_600_000


@dataclass(frozen=True)
class PlannedTask:
    """whole: questions there are, of which `asked`; None where nobody has counted. fetched: bytes, 0 for what is here,
    None where the size is not public."""

    info: TaskInfo
    asked: int | None
    whole: int | None
    fetched: int | None

    @property
    def new_tokens(self) -> int:
        """Of one answer, as it is taken to be."""
        return LONG_ANSWER if self.info.prompt == QUESTIONS_AS_THEY_ARE else SHORT_ANSWER


class Pace(NamedTuple):
    """How fast a bench found a method: image and prompt, one step of decoding, and whether that was projected."""

    start_ms: float
    step_ms: float
    projected: bool


@dataclass(frozen=True)
class Plan:
    """methods: as typed, each with its pace if a bench has it. skipped: why others cannot be run."""

    model: str
    tasks: tuple[PlannedTask, ...]
    methods: Mapping[str, Pace | None]
    skipped: Mapping[str, str]
    limit: int | float | None = None
    data_root: Path | None = None
    bench: BenchRecord | None = None

    @property
    def samples(self) -> int:
        """Of each method."""
        return sum(task.asked or 0 for task in self.tasks)

    @property
    def fetched(self) -> int:
        """Bytes, as far as they are known."""
        return sum(task.fetched or 0 for task in self.tasks)

    def hours(self, method: str) -> float | None:
        pace = self.methods[method]
        if pace is None:
            return None
        times = ((task.asked or 0) * (pace.start_ms + task.new_tokens * pace.step_ms) for task in self.tasks)
        return sum(times) / MS_PER_HOUR


def make_plan(
    model: str,
    tasks: Sequence[str],
    methods: Sequence[str],
    skipped: Mapping[str, str],
    limit: int | float | None = None,
    data_root: Path | None = None,
    bench: BenchRecord | None = None,
) -> Plan:
    """The plan of `evaluate` with the same arguments. ConfigError for a bench of another model."""
    check_limit(limit)
    if data_root is not None:
        require(data_root, ())
    if bench is not None and known_name(bench.model) != known_name(model):
        raise ConfigError(f"the bench is of model {bench.model!r}; accepted for this evaluation: one of {model!r}.")
    planned = tuple(_task(info, limit, data_root) for info in resolve_tasks(tasks))
    paces = {method: pace(bench, method) if bench else None for method in methods}
    return Plan(model, planned, paces, skipped, limit, data_root, bench)


def _task(info: TaskInfo, limit: int | float | None, data_root: Path | None) -> PlannedTask:
    parts = _questions(info, data_root)
    asked = sum(limited(part, limit, info.together) for part in parts) if parts else None
    return PlannedTask(info, asked, sum(parts) if parts else None, _fetched(info, data_root))


def _fetched(info: TaskInfo, data_root: Path | None) -> int | None:
    if info.data is None:  # a bundled task, or one of lmms-eval of which nothing is known here
        return None if info.questions is None else 0
    return 0 if data_root and not missing(data_root, [info]) else info.data.size


def _questions(info: TaskInfo, data_root: Path | None) -> list[int]:
    """Questions of each of lmms-eval's tasks behind a name: counted where they lie, or as the catalogue says."""
    there = _questions_there(info, data_root) if data_root else []
    if there or info.questions is None:
        return there
    each = info.questions // len(info.tasks)
    return [each] * len(info.tasks)


def _questions_there(info: TaskInfo, data_root: Path) -> list[int]:
    if info.data is None or info.data.mixed or missing(data_root, [info]):
        return []
    if info.data.path in OWN_DATASETS:
        return [len(json.loads((data_root / info.data.path / "test_q.json").read_text(encoding="utf-8")))]
    return list(questions_there(data_root, info).values())


def pace(bench: BenchRecord, method: str) -> Pace | None:
    """Of the whole model at batch 1, decoded as an evaluation does if it was; None where the bench has it not."""
    whole = bench.config.get("model_layers")
    found = (one for one in bench.setups() if (one.method, one.batch_size, one.layers) == (method, 1, whole))
    for setup in sorted(found, key=lambda one: (one.decoder != IN_PLACE, one.decoder != EAGER))[:1]:
        vision, prefill, decode = (longest(bench, setup, phase) for phase in (VISION, PREFILL, DECODE))
        if prefill and decode:
            start = prefill.median_ms + (vision.median_ms if vision else 0.0)
            return Pace(start, decode.median_ms, setup.projected)
    return None
