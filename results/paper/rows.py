"""What a record has in a table of the paper: rows in the paper's columns, their differences to it, and remarks.

A row holds measured numbers only, or is marked as projected; what is not known is left out of it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pandas

from coremat.results.paper.printed import COST_COLUMNS, COST_TABLE, TEXT_COLUMNS, PaperTable
from coremat.results.record.bench import BenchRecord
from coremat.results.record.eval import Record, Row
from coremat.results.record.methods import methods_of
from coremat.results.tables.bench_costs import MEASURED, cost_notes, cost_rows
from coremat.results.tables.eval import flops_note

DIFFERENCE = "difference"
COREMATCHING = "corematching"
CORE_NEURONS = "core-neurons"  # alone, whose share of neurons Table 1 varies
BUDGET = "tokens="  # the option that leaves a method the paper's, whatever budget the paper gave it
NOT_PER_CENT = frozenset(("mme", "msvd_score", "msrvtt_score", "activitynet_score"))
_NO_SCORES = "a bench measures no scores, and adds nothing to this table."

Cells = dict[str, Any]
AnyRecord = Record | BenchRecord
Columns = Mapping[tuple[str, str], str]  # the paper's column of a metric of a task, by (Row.task, Row.metric)


def rows_beside(table: PaperTable, records: Iterable[AnyRecord], columns: Columns) -> list[Cells]:
    """The rows of the records, record by record, and below them the differences to the paper."""
    found = [cells for record in records for cells in _found(table, record, columns)]
    return [*found, *_differences(table, found)]


def _found(table: PaperTable, record: AnyRecord, columns: Columns) -> list[Cells]:
    """The rows that a record has in a table: none where it measured something else."""
    if isinstance(record, BenchRecord):
        return list(cost_rows(record)) if table.number == COST_TABLE else []
    if table.number == COST_TABLE:
        return []
    measured = _MEASURE[table.number](table, record, columns)
    model = record.config.get("known_as", record.model)  # it may have been loaded from a folder
    return [{"source": MEASURED, "model": model, **cells} for cells in measured]


# --- scores ----------------------------------------------------------------------------------------------


def _by_column(rows: Iterable[Row], table: PaperTable, columns: Columns) -> dict[str, Row]:
    """The row of each task column of the table that was measured."""
    placed = ((columns.get((row.task, row.metric)), row) for row in rows)
    return {column: row for column, row in placed if column in table.tasks}


def _by_method(record: Record) -> Iterator[tuple[str, list[Row]]]:
    for method in dict.fromkeys(row.method for row in record.rows):
        yield method, [row for row in record.rows if row.method == method]


def _scores(table: PaperTable, record: Record, columns: Columns) -> Iterator[Cells]:
    """Tables 2, 4, 5, 6, 8: a row for each method, with its score on each task and its cost over those tasks."""
    for method, rows in _by_method(record):
        found = _by_column(rows, table, columns)
        if found:
            costs = {name: _mean(found.values(), COST_COLUMNS[name]) for name in table.columns if name in COST_COLUMNS}
            yield {"method": method, **costs, **{column: row.score for column, row in found.items()}}


def _mean(rows: Iterable[Row], name: str) -> float | None:
    """The mean over tasks, as the paper's; None unless every task has it."""
    values = [getattr(row, name) for row in rows]
    return None if None in values else sum(values) / len(values)


def _keep_ratios(table: PaperTable, record: Record, columns: Columns) -> Iterator[Cells]:
    """Table 1: core neurons alone, at each ratio of the record (to a hundredth, as it was measured), on each task.

    A task counts by its main metric, the first; one in points, or on lmms-eval's own scale, is no accuracy.
    """
    main: dict[tuple[str, str], Row] = {}
    for row in record.rows:
        main.setdefault((row.method, row.task), row)
    for (method, task), row in main.items():
        name = methods_of(record.config).get(method, {}).get("name")
        per_cent = columns.get((task, row.metric)) not in NOT_PER_CENT and not record.has_own_scale(task, row.metric)
        if name == CORE_NEURONS and per_cent:
            kept = round(row.neurons_kept / row.neurons, 2) if row.neurons and row.neurons_kept else None
            yield {"method": method, "task": task, "keep_ratio": kept, "accuracy_percent": row.score}


def _core_tokens(table: PaperTable, record: Record, columns: Columns) -> Iterator[Cells]:
    """Table 7: how many image tokens the knee kept on each task."""
    found = _by_column((row for row in record.rows if row.method == COREMATCHING), table, columns)
    if found:
        yield {"method": COREMATCHING, **{column: row.image_tokens_kept for column, row in found.items()}}


_MEASURE: Mapping[int, Callable[[PaperTable, Record, Columns], Iterator[Cells]]] = {
    1: _keep_ratios,
    2: _scores,
    4: _scores,
    5: _scores,
    6: _scores,
    7: _core_tokens,
    8: _scores,
}


# --- differences -----------------------------------------------------------------------------------------


def _differences(table: PaperTable, found: Iterable[Cells]) -> Iterator[Cells]:
    """Ours minus the paper's, for the numbers that both have for the same model and method, in Table 3 and device.

    Not in Tables 1 and 6, which do not say the task or the model of a number.
    """
    if not {"model", "method"} <= set(table.columns):
        return
    paper = {_key(row): row for row in table.frame.to_dict("records")}
    for row in found:
        apart = TEXT_COLUMNS.union(row.get("unlike", ()))
        theirs = {name: value for name, value in paper.get(_key(row), {}).items() if name not in apart}
        both = [name for name, value in theirs.items() if pandas.notna(value) and row.get(name) is not None]
        if both:
            numbers = {name: round(row[name] - theirs[name], 6) for name in both}
            names: Cells = {name: row[name] for name in ("model", "device", "method") if name in row}
            yield {"source": DIFFERENCE, "projected": row.get("projected", False), **names, **numbers}


def _key(row: Cells) -> tuple[Any, Any, Any]:
    return row["model"], row.get("paper_method", paper_method(row["method"])), row.get("device")


def paper_method(method: str) -> str:
    """The paper's name of a method as typed: "fastv" for "fastv:tokens=144"; other options make it another method."""
    name, *options = method.split(":")
    return name if all(option.startswith(BUDGET) for option in options) else method


# --- remarks ---------------------------------------------------------------------------------------------


def record_notes(table: PaperTable, record: AnyRecord, columns: Columns) -> Iterator[str]:
    """What a reader must know of a record before comparing: what it measured on how many samples, and how."""
    if isinstance(record, BenchRecord):
        yield from cost_notes(record) if table.number == COST_TABLE else (f"{record.model}: {_NO_SCORES}",)
        return
    if not _found(table, record, columns):
        tasks = ", ".join(dict.fromkeys(row.task for row in record.rows))
        yield f"{record.model}: nothing in this record belongs to this table (its tasks: {tasks or 'none'})."
        return
    found = _by_column(record.rows, table, columns)
    samples: dict[str, int] = {}
    for row in found.values() or record.rows:
        samples.setdefault(row.task, row.samples)  # of its main metric, which comes first
    counts = ", ".join(f"{task} {count}" for task, count in samples.items())
    yield f"{record.model}, measured samples: {counts}."
    if "prefill_tflops" in table.columns:
        yield f"{record.model}, {flops_note(record)}"
    for task, remark in record.config.get("notes", {}).items():
        if {column for (name, _), column in columns.items() if name == task} & set(found):
            yield f"{record.model}, {task}: {remark}."
