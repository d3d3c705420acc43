"""Two records of one model and of one kind, compared row by row: what `coremat check` decides by."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from coremat.errors import RecordError
from coremat.results.check.fidelity import FidelityRun, compare_fidelity
from coremat.results.check.rows import Compared, Comparison, Limits
from coremat.results.check.scores import Run, compare_scores
from coremat.results.check.speed import compare_benches, floor_of_scores
from coremat.results.record.bench import BenchRecord
from coremat.results.record.eval import Record, read_document, record_path
from coremat.results.record.fidelity import FidelityRecord
from coremat.results.record.methods import methods_of, settings_of

# What may differ in a config without making a score or a speed-up another thing, or is looked at row by row.
EVERYWHERE = ("methods", "flops_convention", "skipped")
FREE: Mapping[str, frozenset[str]] = {
    Record.kind: frozenset(
        (
            *EVERYWHERE,
            "tasks",
            "weights",
            "batch_size",
            "in_smaller_batches",
            "coremat",
            "schema",
            "prompt_tokens",
            "notes",
        )
    ),
    BenchRecord.kind: frozenset((*EVERYWHERE, "batch_sizes", "repeats", "limits", "bandwidth", "rate")),
    FidelityRecord.kind: frozenset((*EVERYWHERE, "asked", "sources", "weights", "coremat", "schema", "prompt_tokens")),
}

KINDS: Mapping[str, type[Record] | type[BenchRecord] | type[FidelityRecord]] = {
    one.kind: one for one in (Record, BenchRecord, FidelityRecord)
}
Where = str | os.PathLike[str]


def compare(record: Where, baseline: Where, limits: Limits) -> Comparison:
    """Compare two records, each a folder or its record.json. RecordError if they cannot be compared."""
    ours, theirs = map(_read, (record, baseline))
    if (ours.kind, ours.model) != (theirs.kind, theirs.model):
        raise RecordError(
            f"{record} is of kind {ours.kind!r} and model {ours.model}, and the baseline {baseline} of kind "
            f"{theirs.kind!r} and model {theirs.model}; they must be alike"
        )
    rows: tuple[Compared, ...] = ()
    if isinstance(ours, Record) and isinstance(theirs, Record):
        rows = compare_scores(_run(ours, record), _run(theirs, baseline), limits)
        rows += () if limits.min_speedup is None else floor_of_scores(ours, limits.min_speedup)
    if isinstance(ours, BenchRecord) and isinstance(theirs, BenchRecord):
        rows = compare_benches(ours, theirs, limits.min_speedup)
    if isinstance(ours, FidelityRecord) and isinstance(theirs, FidelityRecord):
        rows = compare_fidelity(_fidelity(ours, record, limits), _fidelity(theirs, baseline, limits), limits)
    comparison = Comparison(ours.model, rows, limits, _notes(ours.kind, ours.config, theirs.config))
    if not comparison.judged:
        raise RecordError(f"the baseline {baseline} has no row that {record} could be compared with")
    return comparison


def _read(where: Where) -> Record | BenchRecord | FidelityRecord:
    path = record_path(where)
    document = read_document(path, *KINDS)
    return KINDS[document["kind"]].parse(path, document)


def _run(record: Record, where: Where) -> Run:
    return Run(record, record_path(where).parent)


def _fidelity(record: FidelityRecord, where: Where, limits: Limits) -> FidelityRun:
    if limits.min_speedup is not None:
        raise RecordError(f"{where} is of kind {record.kind!r}, which has no times, and --min-speedup needs them")
    return FidelityRun(record, record_path(where).parent)


def _notes(kind: str, config: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    names = (*_differing(config, other, FREE[kind]), *_differing_methods(config, other))
    return (f"differs from the baseline: {', '.join(names)}.",) if names else ()


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], free: frozenset[str]) -> Iterator[str]:
    """What both say, and differently."""
    return (name for name in one if name in other and name not in free and one[name] != other[name])


def _differing_methods(config: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """Methods that were typed alike and are not: another default, or another source."""
    others = methods_of(other)
    for typed, own in methods_of(config).items():
        there = settings_of(others.get(typed, {}))
        names = list(_differing(settings_of(own), there, frozenset(("seed",))))  # it is the run's
        if names:
            yield f"{typed} ({', '.join(names)})"
