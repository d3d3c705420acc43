"""The paper's tables with what was measured here laid beside them, as tables to show and as frames of numbers.

The paper's cells stand as printed, ours are rounded like them, and what is not known is an empty cell.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import pandas

from coremat.results.paper.printed import (
    COST_COLUMNS,
    PAPER,
    RATIO_TABLE,
    TEXT_COLUMNS,
    VIDEO_TABLE,
    PaperTable,
    paper_table,
)
from coremat.results.paper.rows import DIFFERENCE, AnyRecord, Cells, Columns, record_notes, rows_beside
from coremat.results.tables.eval import Column, Table, count, fixed, mark, significant

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
# What a measured row needs to say which it is, where the paper's table does not have it.
NEEDED = {RATIO_TABLE: ["source", "model", "method", "task"], VIDEO_TABLE: ["source", "model"]}
ROW_NAMES = ("model", "method", "task")  # what says which row it is, after its source; texts behind are properties
NO_COLUMNS: Columns = MappingProxyType({})


def beside(number: int, records: Sequence[AnyRecord] = (), columns: Columns = NO_COLUMNS) -> Table:
    """Table `number` of the paper with what the records found below it, ready to show.

    Evaluations have rows in the tables of scores, benches in Table 3. `columns` names the paper's column of a metric of
    a task; others are in no table but Table 1, which has any task. A row of differences (measured - paper) follows
    where model and method are the same; a budget of tokens makes no other method.
    """
    table = paper_table(number)
    names = _names(table)
    rows = [*({"source": PAPER, **row} for row in table.printed), *rows_beside(table, records, columns)]
    ours = (note for record in records for note in record_notes(table, record, columns))
    return Table(
        title=f"Table {number} of the paper: {table.title}",
        columns=tuple(Column(HEADINGS.get(name, name), name not in TEXT_COLUMNS) for name in names),
        rows=tuple(tuple(_show(row, name) for name in names) for row in rows),
        raw_names=tuple(names),
        raw=tuple(tuple(_raw(row, name) for name in names) for row in rows),
        notes=(f"paper: {table.source}.", *table.notes, *ours),
        section=names.index("source"),
        label_count=1 + max(names.index(name) for name in ROW_NAMES if name in names),
    )


def beside_frame(number: int, records: Sequence[AnyRecord] = (), columns: Columns = NO_COLUMNS) -> pandas.DataFrame:
    """`beside` as numbers, NaN where there is none; the column `source` says "paper", "measured",
    "projected" or "difference"."""
    table = paper_table(number)
    paper = table.frame.assign(source=PAPER).to_dict("records")
    frame = pandas.DataFrame([*paper, *rows_beside(table, records, columns)], columns=_names(table))
    numbers = [name for name in frame.columns if name not in TEXT_COLUMNS]
    return frame.astype(dict.fromkeys(numbers, float))


def _names(table: PaperTable) -> list[str]:
    """The columns beside the paper: the paper's own, and what a measured row needs to say which it is."""
    needed = NEEDED.get(table.number, ["source"])
    return [*needed, *(name for name in table.columns if name not in needed)]


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
