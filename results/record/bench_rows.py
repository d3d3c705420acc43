"""What a bench finds: a method in one phase, with every raw time and the limit beside it, and what it keeps in memory.

A number is measured (it has samples) or projected onto a device that is not here (it has none), never both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from coremat.errors import RecordError
from coremat.results.record.eval import plain_number

PHASES = ("vision", "prefill", "selection", "gathering", "decode", "end-to-end")
VISION, PREFILL, SELECTION, GATHERING, DECODE, END_TO_END = PHASES


class Setup(NamedTuple):
    """How the rows of one line of a table were run."""

    method: str
    decoder: str
    batch_size: int
    layers: int
    projected: bool


class Work(NamedTuple):
    """What was done: two rows of the same work may be set against each other."""

    phase: str
    batch_size: int
    layers: int
    prompt_tokens: int
    new_tokens: int
    projected: bool


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One method in one phase. `None`: not known. Times are ms, and of the whole batch.

    method: as typed. decoder: how it was decoded; "" where that makes no difference, as for the vision tower.
    phase: vision (tower and projector), prefill (the decoder over the prompt, its selection and gathering included),
    selection, gathering, decode (one step: a token for each sequence), end-to-end (from the image to the last token).
    layers: decoder layers that were run. prompt_tokens: of one sequence before pruning, of which image_tokens, of
    which image_tokens_kept. neurons: FFN neurons of a layer, of which neurons_kept while decoding. new_tokens: the
    length of the answer; in every phase but end-to-end the one length that was measured.
    samples_ms: a time for each run in the order of the runs, run n of one method beside run n of the others (decode:
    the median over the steps of the run). projected_ms: in place of samples.
    flops, bytes: operations by formula, and the bytes moved at least (decode: of one step). flops_counted: by torch.
    limit_ms: the larger of flops over the device's rate and bytes over its bandwidth. limit_speedup: what flops or
    bytes allow over dense.
    """

    method: str
    decoder: str
    phase: str
    batch_size: int
    layers: int
    prompt_tokens: int
    image_tokens: float | None = None
    image_tokens_kept: float | None = None
    neurons: float | None = None
    neurons_kept: float | None = None
    new_tokens: int
    samples_ms: Sequence[float] = ()
    projected_ms: float | None = None
    flops: float | None = None
    flops_counted: float | None = None
    bytes: float | None = None
    limit_ms: float | None = None
    limit_speedup: float | None = None

    def __post_init__(self) -> None:
        """Plain numbers only; RecordError for a field that cannot be."""
        _make_plain(self, texts=("method", "decoder", "phase"), counts=ROW_COUNTS, amounts=ROW_AMOUNTS)
        if self.phase not in PHASES:
            raise RecordError(f"phase is {self.phase!r}; accepted: {', '.join(PHASES)}")
        object.__setattr__(self, "samples_ms", _times(self.samples_ms))
        if bool(self.samples_ms) == self.projected:
            raise RecordError(
                f"samples_ms has {len(self.samples_ms)} times and projected_ms is {self.projected_ms}; "
                "accepted: measured times or a projected one, and not both"
            )

    @property
    def projected(self) -> bool:
        return self.projected_ms is not None

    @property
    def setup(self) -> Setup:
        return Setup(self.method, self.decoder, self.batch_size, self.layers, self.projected)

    @property
    def work(self) -> Work:
        return Work(self.phase, self.batch_size, self.layers, self.prompt_tokens, self.new_tokens, self.projected)

    @property
    def median_ms(self) -> float:
        """The median of the samples; of a projected row its one number."""
        return float(np.median(self.samples_ms)) if self.projected_ms is None else self.projected_ms

    @property
    def p10_ms(self) -> float | None:
        return float(np.percentile(self.samples_ms, 10)) if self.samples_ms else None

    @property
    def p90_ms(self) -> float | None:
        return float(np.percentile(self.samples_ms, 90)) if self.samples_ms else None

    @property
    def tokens_per_second(self) -> float | None:
        """Prompt tokens read by a prefill, new tokens made while decoding and end to end; of the whole batch."""
        each = {PREFILL: self.prompt_tokens, DECODE: 1, END_TO_END: self.new_tokens}.get(self.phase)
        return None if each is None else ratio(1000 * self.batch_size * each, self.median_ms)

    @property
    def tflop(self) -> float | None:
        """Operations in 10^12: as torch counted them, otherwise by formula."""
        operations = self.flops if self.flops_counted is None else self.flops_counted
        return None if operations is None else operations / 1e12

    @property
    def tflops_per_second(self) -> float | None:
        return None if self.flops is None else ratio(self.flops / 1e9, self.median_ms)

    @property
    def gb_per_second(self) -> float | None:
        return None if self.bytes is None else ratio(self.bytes / 1e6, self.median_ms)

    @property
    def limit_share(self) -> float | None:
        """1 where the limit is reached."""
        return None if self.limit_ms is None else ratio(self.limit_ms, self.median_ms)


@dataclass(frozen=True, kw_only=True)
class BenchMemory:
    """What a method keeps in memory. MiB are 2^20 bytes, GB are 10^9. `None`: not known.

    decoder: as in `BenchRow`. kv_cache_mib: measured after the prefill; a projection has none, and is known by that.
    kv_cache_mib_paper: the paper's way, text tokens and kept image tokens times the bytes of a token in all layers.
    ffn_gb: FFN weights that decoding needs: those among which the tokens of an answer choose. ffn_read_gb: those that
    one decode step reads, with what the method adds in order to choose (since schema 3). total_gb: all weights that
    decoding needs, and the cache. workspace_mib: what the method holds on top. peak_gb: the most that the device held,
    None on a CPU.
    """

    method: str
    decoder: str = ""
    batch_size: int
    kv_cache_mib: float | None = None
    kv_cache_mib_paper: float | None = None
    ffn_gb: float | None = None
    ffn_read_gb: float | None = None
    total_gb: float | None = None
    workspace_mib: float | None = None
    peak_gb: float | None = None

    def __post_init__(self) -> None:
        """Plain numbers only; RecordError for a field that cannot be."""
        _make_plain(self, texts=("method", "decoder"), counts=("batch_size",), amounts=MEMORY_AMOUNTS)

    @property
    def projected(self) -> bool:
        return self.kv_cache_mib is None


ROW_FIELDS = tuple(one.name for one in fields(BenchRow))
ROW_COUNTS = ("batch_size", "layers", "prompt_tokens", "new_tokens")
ROW_AMOUNTS = tuple(one.name for one in fields(BenchRow) if one.type == float | None)
MEMORY_FIELDS = tuple(one.name for one in fields(BenchMemory))
MEMORY_FIELDS_BEFORE_SCHEMA_3 = tuple(name for name in MEMORY_FIELDS if name != "ffn_read_gb")
MEMORY_AMOUNTS = tuple(one.name for one in fields(BenchMemory) if one.type == float | None)


def ratio(one: float, other: float) -> float | None:
    """One over the other; None over nothing."""
    return one / other if other else None


def _make_plain(entry: Any, texts: Sequence[str], counts: Sequence[str], amounts: Sequence[str]) -> None:
    for name in texts:
        if not isinstance(getattr(entry, name), str):
            raise RecordError(f"{name} is {getattr(entry, name)!r}, and must be a text")
    for name in (*counts, *amounts):
        object.__setattr__(entry, name, plain_number(name, getattr(entry, name)))
    for name in counts:
        value = getattr(entry, name)
        if not isinstance(value, int) or value < 1:
            raise RecordError(f"{name} is {value!r}, and must be a whole number from 1")
    for name in amounts:
        value = getattr(entry, name)
        if value is not None and value < 0:
            raise RecordError(f"{name} is {value!r}, and must be a number from 0, or null")


def _times(samples: Any) -> tuple[float, ...]:
    """Plain, finite times; null stands for none."""
    if samples is None:
        return ()
    if isinstance(samples, (str, Mapping)) or not hasattr(samples, "__iter__"):
        raise RecordError(f"samples_ms is {samples!r}, and must be a list of times")
    times = []
    for sample in samples:
        time = plain_number("samples_ms", sample)
        if time is None or time < 0:
            raise RecordError(f"samples_ms holds {sample!r}, and must hold times from 0 ms")
        times.append(time)
    return tuple(times)
