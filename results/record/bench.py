"""The record of a bench as `DIR/record.json`, and its comparisons: each method over dense at the same work.

Measured and projected numbers are never set against each other.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from coremat.names import DENSE
from coremat.results.record.bench_rows import (
    END_TO_END,
    MEMORY_FIELDS,
    MEMORY_FIELDS_BEFORE_SCHEMA_3,
    PREFILL,
    ROW_FIELDS,
    VISION,
    BenchMemory,
    BenchRow,
    Setup,
    Work,
    ratio,
)
from coremat.results.record.eval import Record, StoredRecord, read_document, read_entries, read_field, record_path

NOISE = 1.02  # medians of interleaved runs repeat to about this factor
EAGER, ACCELERATE = USUAL = ("eager generate", "accelerate offload")  # dense decoded without coremat
IN_PLACE = "in-place cache"  # Hugging Face's `generate` on coremat's cache, which copies nothing


@dataclass(frozen=True)
class BenchRecord(StoredRecord):
    """What one `coremat bench` found. A bench that was stopped has the rows that were finished.

    config is plain JSON. methods: see `record_methods`. What the tables read in it: weights
    ("random" or "pretrained"), model_layers (decoder layers of the whole model), image_tokens_kept ("given" or
    "found"), dtype, device (as typed), profile (of a projection, with its name), limits (in words: where the device's
    rate and bandwidth are from), flops_convention, skipped (why, for each method that the model cannot run). And in
    environment: gpu (with its name, or null), cpu, threads, device.
    """

    kind: ClassVar[str] = "bench"
    model: str
    rows: tuple[BenchRow, ...]
    memory: tuple[BenchMemory, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, path: Path, document: Mapping[str, Any]) -> "BenchRecord":
        """The record that a document read from `path` holds."""
        return cls(
            model=read_field(path, document, "model", str),
            rows=read_entries(path, document, "rows", BenchRow, ROW_FIELDS),
            memory=read_entries(path, document, "memory", BenchMemory, _memory_fields(document["schema"])),
            config=read_field(path, document, "config", dict),
            environment=read_field(path, document, "environment", dict),
        )

    @property
    def device(self) -> str:
        """The device by its profile's name where one was asked for, otherwise the one that was found; "" if unknown."""
        typed = self.config.get("device")
        asked = None if str(typed).partition(":")[0] in ("None", "auto", "cuda", "cpu") else typed
        found = _name(self.environment.get("gpu")) or self.environment.get("device")
        return str(_name(self.config.get("profile")) or asked or found or "")

    @property
    def beginning(self) -> str:
        """What answers are timed from: an image, or, for a model of text alone, which has no tower, the prompt."""
        sees = any(row.image_tokens != 0 or row.phase == VISION for row in self.rows)
        return "image" if sees or not self.rows else "prompt"

    def setups(self) -> tuple[Setup, ...]:
        """What was compared, as it was run. Rows without a decoder belong to every decoder of their method."""
        found = dict.fromkeys(row.setup for row in self.rows)
        decoded = {setup._replace(decoder="") for setup in found if setup.decoder}
        return tuple(setup for setup in found if setup.decoder or setup not in decoded)

    def rows_of(self, setup: Setup, phase: str) -> tuple[BenchRow, ...]:
        """The rows of one phase, by length of answer."""
        own = (setup, setup._replace(decoder=""))
        rows = [row for row in self.rows if row.phase == phase and row.setup in own]
        return tuple(sorted(rows, key=lambda row: row.new_tokens))

    def memory_of(self, setup: Setup) -> BenchMemory | None:
        """What the method keeps in memory when it is decoded so."""
        own = (one for one in self.memory if one.method == setup.method and one.decoder in (setup.decoder, ""))
        alike = [one for one in own if _beside(one) == (setup.batch_size, setup.projected)]
        return max(alike, key=lambda one: one.decoder, default=None)  # a decoder's own before that of all

    def _dense(self, work: Work) -> list[BenchRow]:
        return [row for row in self.rows if row.method == DENSE and row.work == work]

    def baseline(self, row: BenchRow, phase: str | None = None) -> BenchRow | None:
        """The dense row that a row is compared with: of the same work (or of another `phase` of it), decoded alike.

        In place of the in-place cache it is what a user has without coremat, Hugging Face's own. Where dense was not
        run with that decoder, it is the fastest dense row.
        """
        dense = self._dense(row.work._replace(phase=phase or row.phase))
        decoder = EAGER if row.decoder == IN_PLACE else row.decoder
        alike = [other for other in dense if other.decoder == decoder]
        return min(alike or dense, key=lambda other: other.median_ms, default=None)

    def speedup(self, row: BenchRow) -> float | None:
        """How many times as fast as dense: median over median of interleaved runs."""
        dense = self.baseline(row)
        return None if dense is None else ratio(dense.median_ms, row.median_ms)

    def speedup_over_usual(self, row: BenchRow) -> float | None:
        """How many times as fast as dense without coremat; None where `speedup` is just that."""
        dense = next((other for other in self._dense(row.work) if other.decoder in USUAL), None)
        return None if dense is None or dense == self.baseline(row) else ratio(dense.median_ms, row.median_ms)

    def speedup_on_same_cache(self, row: BenchRow) -> float | None:
        """How many times as fast as dense on the in-place cache, of a row that was decoded so."""
        dense = next((other for other in self._dense(row.work) if other.decoder == row.decoder == IN_PLACE), None)
        return None if dense is None else ratio(dense.median_ms, row.median_ms)

    def speedup_share(self, row: BenchRow) -> float | None:
        """The speed-up as a share of what operations or bytes allow."""
        speedup = self.speedup(row)
        return None if speedup is None or row.limit_speedup is None else ratio(speedup, row.limit_speedup)

    def speedup_range(self, row: BenchRow) -> tuple[float, float] | None:
        """p10 and p90 of the speed-up run by run, of the runs that both have; None without any."""
        dense = self.baseline(row)
        pairs = zip(dense.samples_ms, row.samples_ms, strict=False) if dense else ()
        ratios = [one / other for one, other in pairs if other]
        return (float(np.percentile(ratios, 10)), float(np.percentile(ratios, 90))) if ratios else None

    def slower_lengths(self, row: BenchRow) -> list[int]:
        """The lengths of answer at which what was run like `row` takes longer than dense, beyond `NOISE`."""
        rows = self.rows_of(row.setup, END_TO_END)
        speedups = ((one.new_tokens, self.speedup(one)) for one in rows)
        return [length for length, speedup in speedups if speedup is not None and speedup * NOISE < 1]

    def prefill_share(self, row: BenchRow) -> float | None:
        """The time of a row as a share of the dense prefill: what a selection costs."""
        dense = self.baseline(row, PREFILL)
        return None if dense is None else ratio(row.median_ms, dense.median_ms)

    def memory_ratio(self, memory: BenchMemory) -> float | None:
        """How many times as much dense keeps in memory, decoded alike where dense was."""
        dense = [one for one in self.memory if one.method == DENSE and _beside(one) == _beside(memory)]
        dense.sort(key=lambda one: one.decoder != memory.decoder)
        whole = dense[0].total_gb if dense else None
        return None if whole is None or memory.total_gb is None else ratio(whole, memory.total_gb)


def _memory_fields(schema: int) -> Sequence[str]:
    return MEMORY_FIELDS_BEFORE_SCHEMA_3 if schema < 3 else MEMORY_FIELDS


def _name(described: Any) -> Any:
    return described.get("name") if isinstance(described, Mapping) else described


def _beside(memory: BenchMemory) -> tuple[int, bool]:
    return memory.batch_size, memory.projected


KINDS: Mapping[str, type[Record] | type[BenchRecord]] = {one.kind: one for one in (Record, BenchRecord)}


def read_any(where: str | os.PathLike[str]) -> Record | BenchRecord:
    """The record of an evaluation or of a bench, whichever it is. RecordError for anything else."""
    path = record_path(where)
    document = read_document(path, *KINDS)
    return KINDS[document["kind"]].parse(path, document)
