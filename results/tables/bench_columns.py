"""The columns of a bench's tables: what each reads in a record, and how it is shown."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coremat.results.record.bench import BenchRecord
from coremat.results.record.bench_rows import (
    DECODE,
    END_TO_END,
    GATHERING,
    PREFILL,
    SELECTION,
    VISION,
    BenchMemory,
    BenchRow,
    ratio,
)
from coremat.results.tables.eval import Column, count, fixed, mark, significant

MEMORY = "memory"
Find = Callable[[BenchRecord, Any], float | None]  # a number of a row or a memory of the record

# The columns that say which line it is.
LABELS: Mapping[str, Column] = {
    "source": Column("source", numeric=False),
    "phase": Column("phase", numeric=False),
    "method": Column("method", numeric=False),
    "decoder": Column("decoder", numeric=False),
    "batch_size": Column("batch"),
    "layers": Column("layers"),
    "new_tokens": Column("new\ntokens"),
}


@dataclass(frozen=True)
class Measure:
    """A column of numbers, called `name` in the CSV. part: the phase whose row it reads, or `MEMORY`; "" for any.

    exact: it follows from a formula, so that a projected row has it as a measured one does.
    optional: not shown where no line has it.
    """

    name: str
    title: str
    find: Find
    show: Callable[[float | None], str] = significant
    part: str = ""
    exact: bool = False
    optional: bool = False

    @property
    def heading(self) -> Column:
        return Column(self.title)

    def cell(self, record: BenchRecord, row: BenchRow | BenchMemory | None) -> tuple[str, Any]:
        """The text shown and the value behind it, both with the mark of a projected number."""
        value = None if row is None else self.find(record, row)
        projected = row is not None and row.projected and not self.exact
        return mark(self.show(value), projected), mark(value, projected)


def percent(share: float | None) -> str:
    return "" if share is None else significant(100 * share)


def times(factor: float | None) -> str:
    return fixed(factor, 2)


def thousandths(factor: float | None) -> str:
    return fixed(factor, 3)


def _own(name: str) -> Find:
    return lambda _, row: getattr(row, name)


def _gflop(_: BenchRecord, row: BenchRow) -> float | None:
    return None if row.tflop is None else 1000 * row.tflop


def _prefill_share(record: BenchRecord, row: BenchRow) -> float | None:
    return record.prefill_share(row) if row.phase in (VISION, SELECTION, GATHERING) else None


def _over_dense(record: BenchRecord, row: BenchRow) -> float | None:
    """The time over dense's."""
    speedup = record.speedup(row)
    return None if speedup is None else ratio(1, speedup)


def _runs(_: BenchRecord, row: BenchRow) -> float | None:
    return len(row.samples_ms) or None


def _against_limit(phase: str) -> tuple[Measure, ...]:
    """The columns that prefill and decode share."""
    return (
        Measure(f"{phase}_limit_ms", "limit\nms", _own("limit_ms"), part=phase, exact=True),
        Measure(f"{phase}_limit_share", "% of\nlimit", _own("limit_share"), percent, phase),
        Measure(f"{phase}_speedup", "speed-\nup x", BenchRecord.speedup, times, phase),
        Measure(f"{phase}_limit_speedup", "limit\nx", _own("limit_speedup"), times, phase, exact=True),
    )


PREFILL_COLUMNS = (
    Measure("kv_cache_mib", "KV\nMiB", _own("kv_cache_mib"), part=MEMORY),
    Measure("kv_cache_mib_paper", "KV as\npaper", _own("kv_cache_mib_paper"), part=MEMORY, exact=True),
    Measure("ffn_gb", "FFN\nGB", _own("ffn_gb"), part=MEMORY),
    Measure("ffn_read_gb", "FFN GB\nread", _own("ffn_read_gb"), part=MEMORY, optional=True),
    Measure("total_gb", "total\nGB", _own("total_gb"), part=MEMORY),
    Measure("memory_ratio", "memory\nratio", BenchRecord.memory_ratio, times, MEMORY),
    Measure("workspace_mib", "extra\nMiB", _own("workspace_mib"), part=MEMORY, optional=True),
    Measure("peak_gb", "peak\nGB", _own("peak_gb"), part=MEMORY, optional=True),
    Measure("prefill_tflops", "prefill\nTFLOPs", _own("tflop"), part=PREFILL, exact=True),
    Measure("prefill_ms", "prefill\nms", _own("median_ms"), part=PREFILL),
    *_against_limit(PREFILL),
)
DECODE_COLUMNS = (
    Measure("decode_gflops", "decode\nGFLOPs", _gflop, part=DECODE, exact=True),
    Measure("decode_ms_per_token", "decode\nms/tok", _own("median_ms"), part=DECODE),
    *_against_limit(DECODE),
    Measure("decode_speedup_over_hf", "x over\nHF", BenchRecord.speedup_over_usual, times, DECODE, optional=True),
    Measure("decode_tokens_per_second", "tokens\n/s", _own("tokens_per_second"), part=DECODE),
    Measure("decode_gb_per_second", "GB/s", _own("gb_per_second"), part=DECODE),
    Measure("end_to_end_speedup", "end to\nend x", BenchRecord.speedup, times, END_TO_END),
)
PHASE_COLUMNS = (
    Measure("runs", "runs", _runs, count, optional=True),
    Measure("median_ms", "median\nms", _own("median_ms")),
    Measure("p10_ms", "p10\nms", _own("p10_ms")),
    Measure("p90_ms", "p90\nms", _own("p90_ms")),
    Measure("limit_ms", "limit\nms", _own("limit_ms"), exact=True),
    Measure("limit_share", "% of\nlimit", _own("limit_share"), percent),
    Measure("speedup", "speed-\nup x", BenchRecord.speedup, times),
    Measure("limit_speedup", "limit\nx", _own("limit_speedup"), times, exact=True),
    Measure("speedup_share", "% of\nlimit", BenchRecord.speedup_share, percent),
    Measure("dense_prefill_share", "% of\nprefill", _prefill_share, percent, optional=True),
    Measure("tflops_per_second", "TFLOP\n/s", _own("tflops_per_second")),
    Measure("gb_per_second", "GB/s", _own("gb_per_second")),
)


def length_columns(record: BenchRecord) -> tuple[Measure, ...]:
    """A column for each length of answer of the record."""
    lengths = sorted({row.new_tokens for row in record.rows if row.phase == END_TO_END})
    return tuple(Measure(f"new_tokens_{length}", str(length), _over_dense, thousandths) for length in lengths)
