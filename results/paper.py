"""The eight tables of the paper as data, and what was measured here laid beside them.

Wang et al., CoreMatching, ICML 2025. The numbers are in `paper/table*.csv`, as printed. Beside them a
measured row holds measured numbers only and a projected one is marked; what is not known is an empty cell.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import pandas

from coremat.errors import UnknownNameError
from coremat.results.bench_costs import MEASURED, cost_notes, cost_rows
from coremat.results.bench_record import BenchRecord
from coremat.results.record import Record, Row
from coremat.results.tables import Column, Table, count, fixed, flops_note, mark, significant

SOURCE = "Wang et al., CoreMatching, ICML 2025"
PAPER, DIFFERENCE = "paper", "difference"
COST_TABLE = 3  # memory and time, which a bench measures and an evaluation does not

TITLES = {
    1: "Accuracy by the share of neurons kept",
    2: "Ten image tasks",
    3: "Memory and time on a Titan Xp",
    4: "Documents and charts",
    5: "Qwen2.5-VL on documents and charts",
    6: "Video questions",
    7: "Core tokens by task",
    8: "Llama-3.2-11B-Vision on core neurons",
}

_FLOPS = (
    "paper, TFLOPs: no convention given; 2*MAC of the decoder alone gives 10.1 and 19.6 for a prompt of 755 tokens."
)
_NOTES = {
    1: ("task: of the measured rows; the paper's table has one accuracy.",),
    2: (_FLOPS,),
    3: (
        _FLOPS,
        "paper, decode TFLOPs: printed as GFLOPs; by arithmetic 0.845 is TFLOP: 64 new tokens on 6.6 billion weights.",
        "An evaluation adds nothing to this table; a bench record does, one prompt at a time.",
    ),
    4: (_FLOPS,),
}
_NO_SCORES = "a bench measures no scores, and adds nothing to this table."

# Columns that say which row it is; the others hold numbers.
TEXT_COLUMNS = frozenset(
    ("source", "model", "method", "size", "task", "device", "training_free", "neuron_sparse", "token_sparse")
)
# Columns of the paper that are no task, and the field of a record's row that measures the same.
COST_COLUMNS = {
    "image_tokens": "image_tokens_kept",
    "visual_tokens": "image_tokens_kept",
    "neurons": "neurons_kept",
    "prefill_tflops": "prefill_tflops",
}

HEADINGS = {
    "training_free": "train.\nfree",
    "neuron_sparse": "neurons\nsparse",
    "token_sparse": "tokens\nsparse",
    "keep_ratio": "neurons\nkept",
    "accuracy_percent": "accuracy\n%",
    "image_tokens": "image\ntokens",
    "visual_tokens": "visual\ntokens",
    "prefill_tflops": "prefill\nTFLOPs",
    "kv_cache_mb": "KV\nMiB",
    "ffn_gb": "FFN\nGB",
    "total_gb": "total\nGB",
    "memory_ratio": "memory\nratio",
    "prefill_latency_s": "prefill\ns",
    "decode_gflops": "decode\nTFLOPs",
    "decode_latency_s": "decode\ns",
    "vqav2": "VQA\nv2",
    "gqa": "GQA",
    "sciqa": "Sci\nQA",
    "textvqa": "Text\nVQA",
    "pope": "POPE",
    "mme": "MME",
    "mmbench_en": "MM\nBench",
    "seed_image": "SEED\nimage",
    "vizwiz": "Viz\nWiz",
    "mmvet": "MM-\nVet",
    "docvqa": "Doc\nVQA",
    "infovqa": "Info\nVQA",
    "chartqa": "Chart\nQA",
    "ocrbench": "OCR\nBench",
    "ai2d": "AI2D",
    "msvd_accuracy": "MSVD\n%",
    "msvd_score": "MSVD\n0-5",
    "msrvtt_accuracy": "MSRVTT\n%",
    "msrvtt_score": "MSRVTT\n0-5",
    "activitynet_accuracy": "ActivityNet\n%",
    "activitynet_score": "ActivityNet\n0-5",
}

# Columns of Table 3 alone, and the decimals of a difference there.
MACHINE_COLUMNS = {
    "kv_cache_mb": 1,
    "ffn_gb": 2,
    "total_gb": 2,
    "memory_ratio": 2,
    "prefill_latency_s": 2,
    "decode_gflops": 3,
    "decode_latency_s": 2,
}
EXACT_COLUMNS = ("prefill_tflops", "decode_gflops")  # operations: counted for a projection as for a measurement

Cells = dict[str, Any]
AnyRecord = Record | BenchRecord


@dataclass(frozen=True, eq=False)
class PaperTable:
    """A table of the paper: `frame` holds its numbers (NaN where it has none), `printed` its cells as printed
    ("" where it has none)."""

    number: int
    title: str
    source: str
    frame: pandas.DataFrame
    printed: tuple[Mapping[str, str], ...]
    notes: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        return list(self.frame.columns)

    @property
    def tasks(self) -> list[str]:
        """The columns that belong to one task each: none in Tables 1 and 3."""
        if self.number in (1, COST_TABLE):
            return []
        return [name for name in self.columns if name not in TEXT_COLUMNS and name not in COST_COLUMNS]


def paper_table(number: int) -> PaperTable:
    """Table 1 to 8 of the paper. UnknownNameError for another number."""
    if number not in TITLES:
        raise UnknownNameError("table of the paper", number, TITLES)
    printed = _read_printed(number)
    frame = pandas.DataFrame(printed, dtype=object)
    for name in frame.columns.difference(list(TEXT_COLUMNS)):
        frame[name] = pandas.to_numeric(frame[name])
    return PaperTable(number, TITLES[number], f"{SOURCE}, Table {number}", frame, printed, _NOTES.get(number, ()))


@cache
def _read_printed(number: int) -> tuple[Mapping[str, str], ...]:
    folder = resources.files("coremat.results").joinpath("paper")
    (file,) = (one for one in folder.iterdir() if one.name.startswith(f"table{number}_"))
    return tuple(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def beside(number: int, records: Sequence[AnyRecord] = (), columns: Mapping[str, str] | None = None) -> Table:
    """Table `number` of the paper with what the records found below it, ready to show.

    Evaluations have rows in the tables of scores, benches in Table 3.
    `columns` names the paper's column of a task; a task that it does not name stands for the column of its
    own name. A row of differences (measured - paper) follows where model and method are the same.
    """
    table = paper_table(number)
    names = _names(table)
    paper = [{"source": PAPER, **row} for row in table.printed]
    added = _added(table, records, columns or {})
    ours = (note for record in records for note in _record_notes(table, record, columns or {}))
    return Table(
        title=f"Table {number} of the paper: {table.title}",
        columns=tuple(Column(HEADINGS.get(name, name), name not in TEXT_COLUMNS) for name in names),
        rows=tuple(tuple(_show(row, name) for name in names) for row in [*paper, *added]),
        raw_names=tuple(names),
        raw=tuple(tuple(_raw(row, name) for name in names) for row in [*paper, *added]),
        notes=(f"paper: {table.source}.", *table.notes, *ours),
        section=names.index("source"),
    )


def beside_frame(
    number: int, records: Sequence[AnyRecord] = (), columns: Mapping[str, str] | None = None
) -> pandas.DataFrame:
    """`beside` as numbers, NaN where there is none; the column `source` says "paper", "measured",
    "projected" or "difference"."""
    table = paper_table(number)
    paper = table.frame.assign(source=PAPER).to_dict("records")
    frame = pandas.DataFrame([*paper, *_added(table, records, columns or {})], columns=_names(table))
    numbers = [name for name in frame.columns if name not in TEXT_COLUMNS]
    return frame.astype(dict.fromkeys(numbers, float))


def _names(table: PaperTable) -> list[str]:
    """The columns beside the paper: the paper's own, and what a measured row needs to say which it is."""
    needed = {1: ["source", "model", "method", "task"], 6: ["source", "model"]}.get(table.number, ["source"])
    return [*needed, *(name for name in table.columns if name not in needed)]


def _added(table: PaperTable, records: Iterable[AnyRecord], columns: Mapping[str, str]) -> list[Cells]:
    """The rows of the records, record by record, and below them the differences to the paper."""
    found = [cells for record in records for cells in _found(table, record, columns)]
    return [*found, *_differences(table, found)]


def _found(table: PaperTable, record: AnyRecord, columns: Mapping[str, str]) -> list[Cells]:
    """The rows that a record has in a table: none where it measured something else."""
    if isinstance(record, BenchRecord):
        return list(cost_rows(record)) if table.number == COST_TABLE else []
    if table.number == COST_TABLE:
        return []
    measured = _MEASURE[table.number](table, record, columns)
    return [{"source": MEASURED, "model": record.model, **cells} for cells in measured]


def _by_column(rows: Iterable[Row], table: PaperTable, columns: Mapping[str, str]) -> dict[str, Row]:
    """The row of each task column of the table; of several metrics of a task the first, its main one."""
    found: dict[str, Row] = {}
    for row in rows:
        column = columns.get(row.task, row.task)
        if column in table.tasks:
            found.setdefault(column, row)
    return found


def _by_method(record: Record) -> Iterator[tuple[str, list[Row]]]:
    for method in dict.fromkeys(row.method for row in record.rows):
        yield method, [row for row in record.rows if row.method == method]


def _scores(table: PaperTable, record: Record, columns: Mapping[str, str]) -> Iterator[Cells]:
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


def _keep_ratios(table: PaperTable, record: Record, columns: Mapping[str, str]) -> Iterator[Cells]:
    """Table 1: every method of the record that prunes nothing but to core neurons, at its ratio, on each task."""
    seen = set()
    for row in record.rows:
        config = record.config.get("methods", {}).get(row.method, {})
        alone = config.get("neurons") == "core" and config.get("tokens") == "all"
        if alone and (row.method, row.task) not in seen:  # the first metric of a task is its main one
            seen.add((row.method, row.task))
            cells = {"method": row.method, "task": row.task, "keep_ratio": config["beta"]}
            yield cells | {"accuracy_percent": row.score}


def _core_tokens(table: PaperTable, record: Record, columns: Mapping[str, str]) -> Iterator[Cells]:
    """Table 7: how many image tokens the knee kept on each task."""
    found = _by_column((row for row in record.rows if row.method == "corematching"), table, columns)
    if found:
        yield {"method": "corematching", **{column: row.image_tokens_kept for column, row in found.items()}}


_MEASURE: Mapping[int, Callable[[PaperTable, Record, Mapping[str, str]], Iterator[Cells]]] = {
    1: _keep_ratios,
    2: _scores,
    4: _scores,
    5: _scores,
    6: _scores,
    7: _core_tokens,
    8: _scores,
}


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
    return row["model"], row.get("paper_method", row["method"]), row.get("device")


def _show(row: Cells, name: str) -> str:
    """A cell as shown: the paper's as printed, ours rounded like it, a difference with its sign."""
    value = row.get(name)
    if value is None or isinstance(value, str):
        return value or ""
    return mark(_rounded(row["source"], name, value), _is_projected(row, name))


def _rounded(source: str, name: str, value: float) -> str:
    if name == "keep_ratio":
        return f"{value:g}"
    if source == DIFFERENCE:
        decimals = MACHINE_COLUMNS.get(name, 1)
        return f"{round(value, decimals) + 0.0:+.{decimals}f}"  # + 0.0 turns -0.0 into 0.0
    if name == "prefill_tflops" or name in MACHINE_COLUMNS:
        return significant(value)
    return count(value) if name in COST_COLUMNS else fixed(value)


def _raw(row: Cells, name: str) -> Any:
    return mark(row.get(name), _is_projected(row, name))


def _is_projected(row: Cells, name: str) -> bool:
    return row.get("projected", False) and name not in TEXT_COLUMNS and name not in EXACT_COLUMNS


def _record_notes(table: PaperTable, record: AnyRecord, columns: Mapping[str, str]) -> Iterator[str]:
    """What a reader must know of a record before comparing: what it measured on how many samples, and how."""
    if isinstance(record, BenchRecord):
        yield from cost_notes(record) if table.number == COST_TABLE else (f"{record.model}: {_NO_SCORES}",)
        return
    if not _found(table, record, columns):
        tasks = ", ".join(dict.fromkeys(row.task for row in record.rows))
        yield f"{record.model}: nothing in this record belongs to this table (its tasks: {tasks or 'none'})."
        return
    rows = _by_column(record.rows, table, columns).values() or record.rows
    samples: dict[str, int] = {}
    for row in rows:
        samples.setdefault(row.task, row.samples)  # of its main metric, which comes first
    counts = ", ".join(f"{task} {count}" for task, count in samples.items())
    yield f"{record.model}, measured samples: {counts}."
    if "prefill_tflops" in table.columns:
        yield f"{record.model}, {flops_note(record)}"
