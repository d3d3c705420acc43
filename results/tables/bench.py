"""The tables of a bench: methods side by side, each beside its limit and the paper's row; every phase; every length.

Forms and empty cells as in `tables`. A projected number has its mark in every form, the CSV too.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coremat.names import DENSE
from coremat.results.paper.printed import COST_TABLE, PAPER, paper_table
from coremat.results.record.bench import BenchRecord
from coremat.results.record.bench_rows import END_TO_END, PHASES, BenchMemory, BenchRow, Setup
from coremat.results.record.eval import write_text_atomic
from coremat.results.tables.bench_columns import (
    DECODE_COLUMNS,
    LABELS,
    PHASE_COLUMNS,
    PREFILL_COLUMNS,
    Measure,
    length_columns,
)
from coremat.results.tables.bench_costs import MEASURED, PAPER_TOKENS, bare, longest, source_of
from coremat.results.tables.bench_notes import PAPER_NOTE, memory_notes, setting_notes, time_notes
from coremat.results.tables.eval import PROJECTED_MARK, PROJECTED_NOTE, Table, to_csv, to_latex, to_markdown


@dataclass(frozen=True)
class Line:
    """A line of a table: which it is, and by the name of the column the text shown and the value behind it."""

    labels: Mapping[str, Any]
    cells: Mapping[str, tuple[str, Any]]


def bench_table(record: BenchRecord) -> Table:
    """The main table: a line for each method, decoder and batch size, the paper's row below those of its method."""
    notes = (*memory_notes(record), *time_notes(record), *setting_notes(record))
    columns = (*PREFILL_COLUMNS, *DECODE_COLUMNS)
    return _main_table(record, "memory, prefill, decoding and end to end", columns, notes)


def prefill_table(record: BenchRecord) -> Table:
    """The half of the main table on memory and prefill: the whole is too wide for a terminal or a page."""
    return _main_table(record, "memory and prefill", PREFILL_COLUMNS, tuple(memory_notes(record)))


def decode_table(record: BenchRecord) -> Table:
    """The half of the main table on decoding and end to end."""
    notes = (*time_notes(record), *setting_notes(record))
    return _main_table(record, "decoding and end to end", DECODE_COLUMNS, notes)


def _main_table(record: BenchRecord, what: str, columns: Sequence[Measure], notes: tuple[str, ...]) -> Table:
    lines = list(_main_lines(record, columns))
    paper = any(line.labels["source"] == PAPER for line in lines)
    labels = ("source", "method", "decoder", "batch_size", "layers")
    return _table(f"{record.model}: {what}", labels, columns, lines, (*notes, PAPER_NOTE) if paper else notes)


def _main_lines(record: BenchRecord, columns: Sequence[Measure]) -> Iterator[Line]:
    printed = _paper_costs(record.model)
    setups = record.setups()
    for name in dict.fromkeys(bare(setup.method) for setup in setups):
        for setup in setups:
            if bare(setup.method) == name:
                parts = (_part(record, setup, column.part) for column in columns)
                yield _line(record, _labels(setup), zip(columns, parts, strict=True))
        if name in printed:
            values = {column.name: printed[name].get(column.name) for column in columns}
            cells = {column.name: (column.show(values[column.name]), values[column.name]) for column in columns}
            yield Line({"source": PAPER, "method": name}, cells)


def _part(record: BenchRecord, setup: Setup, part: str) -> BenchRow | BenchMemory | None:
    """What a column of the main table reads: the memory, or the row of a phase at the longest answer of the record."""
    if part not in PHASES:
        return record.memory_of(setup)
    row = longest(record, setup, part)
    lengths = [other.new_tokens for other in record.rows if other.phase == part]
    return row if row is not None and row.new_tokens == max(lengths) else None


def _labels(setup: Setup) -> dict[str, Any]:
    return {"source": source_of(setup.projected), **setup._asdict()}


def _line(
    record: BenchRecord,
    labels: Mapping[str, Any],
    found: Iterable[tuple[Measure, BenchRow | BenchMemory | None]],
) -> Line:
    return Line(labels, {column.name: column.cell(record, row) for column, row in found})


def _paper_costs(model: str) -> dict[str, dict[str, float]]:
    """The paper's rows on a model, by method, in the units of the main table."""
    rows = [row for row in paper_table(COST_TABLE).frame.to_dict("records") if row["model"] == model]
    dense = next((row for row in rows if row["method"] == DENSE), None)
    return {} if dense is None else {row["method"]: _in_our_units(row, dense) for row in rows}


def _in_our_units(row: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, float]:
    prefill, decode = row["prefill_latency_s"], row["decode_latency_s"]
    return {
        "kv_cache_mib_paper": row["kv_cache_mb"],
        **{name: row[name] for name in ("ffn_gb", "total_gb", "memory_ratio", "prefill_tflops")},
        "prefill_ms": 1000 * prefill,
        "prefill_speedup": dense["prefill_latency_s"] / prefill,
        "decode_gflops": 1000 * row["decode_gflops"] / PAPER_TOKENS,
        "decode_ms_per_token": 1000 * decode / PAPER_TOKENS,
        "decode_speedup": dense["decode_latency_s"] / decode,
        "decode_tokens_per_second": PAPER_TOKENS / decode,
    }


def phase_table(record: BenchRecord) -> Table:
    """Every row of the record, phase by phase."""
    labels = ("phase", "source", "method", "decoder", "batch_size", "layers", "new_tokens")
    lines = [
        _line(
            record,
            {"phase": row.phase, **_labels(row.setup), "new_tokens": row.new_tokens},
            ((column, row) for column in PHASE_COLUMNS),
        )
        for row in sorted(record.rows, key=lambda row: PHASES.index(row.phase))
    ]
    notes = ("% of limit: the share of the limit before it that was reached; % of prefill: of dense's.",)
    return _table(f"{record.model}: every phase", labels, PHASE_COLUMNS, lines, notes, section="phase")


def length_table(record: BenchRecord) -> Table:
    """End to end: the time of each method over dense's, for every length of answer."""
    labels = ("source", "method", "decoder", "batch_size", "layers")
    columns = length_columns(record)
    lines = []
    for setup in record.setups():
        rows = {f"new_tokens_{row.new_tokens}": row for row in record.rows_of(setup, END_TO_END)}
        if rows and setup.method != DENSE:
            lines.append(_line(record, _labels(setup), ((column, rows.get(column.name)) for column in columns)))
    notes = ("Below 1 the method is faster than dense.",)
    title = f"{record.model}: time from the {record.beginning} to the last token over dense's, by new tokens"
    return _table(title, labels, columns, lines, notes)


def _table(
    title: str,
    labels: Sequence[str],
    columns: Sequence[Measure],
    lines: Sequence[Line],
    notes: tuple[str, ...],
    section: str | None = None,
) -> Table:
    """All labels and columns in the CSV; shown are labels that tell lines apart and columns that are not idle."""
    names = [name for name in labels if _tells(name, lines)]
    shown = [column for column in columns if not column.optional or any(line.cells[column.name][0] for line in lines)]
    rows = tuple(
        (*(str(line.labels.get(name, "")) for name in names), *(line.cells[column.name][0] for column in shown))
        for line in lines
    )
    projected = any(cell.startswith(PROJECTED_MARK) for row in rows for cell in row)
    return Table(
        title=title,
        columns=(*(LABELS[name] for name in names), *(column.heading for column in shown)),
        rows=rows,
        raw_names=(*labels, *(column.name for column in columns)),
        raw=tuple(
            (*(line.labels.get(name) for name in labels), *(line.cells[column.name][1] for column in columns))
            for line in lines
        ),
        notes=(*notes, PROJECTED_NOTE) if projected else notes,
        section=names.index(section) if section else None,
    )


def _tells(label: str, lines: Sequence[Line]) -> bool:
    """Whether a label must be seen: the source unless all is measured, the others where they differ."""
    found = {line.labels[label] for line in lines if label in line.labels}
    if label == "source":
        return not found <= {MEASURED}
    return label in ("method", "phase") or len(found) > 1


def write_bench_tables(record: BenchRecord, directory: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write `table.md`, `table.csv`, `table.tex` and `phases.csv` into the folder of a record; return their paths.

    The main table is one in the CSV and two halves where it is read; the others follow in `table.md`.
    """
    halves = (prefill_table(record), decode_table(record))
    others = (length_table(record), phase_table(record))
    texts = {
        "table.md": "\n".join(to_markdown(table) for table in (*halves, *others)),
        "table.csv": to_csv(bench_table(record)),
        "table.tex": "\n".join(to_latex(table) for table in halves),
        "phases.csv": to_csv(phase_table(record)),
    }
    return tuple(write_text_atomic(Path(directory) / name, text) for name, text in texts.items())
