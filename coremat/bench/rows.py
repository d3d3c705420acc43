"""From the times of a variant, or from a projection, to the rows of a bench record, each beside its bound."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coremat.bench.timing import AnswerTimes
from coremat.cost.workload import Workload, decode_bound, prefill_bound
from coremat.hardware.profiles import DeviceProfile
from coremat.hardware.projection import Demand, pass_time, projected_decode, projected_end_to_end, projected_prefill
from coremat.hardware.roofline import Roofline
from coremat.results.record.bench_rows import (
    DECODE,
    END_TO_END,
    GATHERING,
    PREFILL,
    SELECTION,
    VISION,
    BenchMemory,
    BenchRow,
)

LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
MIB, GB = 2**20, 10**9


@dataclass(frozen=True)
class Measurement:
    """A variant as it was run: its work, the dense model's, and the roofline of the device.

    counted: operations of its prefill by torch's count, None if not counted.
    """

    spec: str
    decoder: str
    workload: Workload
    dense: Workload
    roofline: Roofline
    new_tokens: int
    counted: int | None = None

    @property
    def middle(self) -> int:
        """The decode step that stands for all."""
        return max(1, self.new_tokens // 2)

    def row(self, phase: str, **more: Any) -> BenchRow:
        """A row of this variant; `more` has its times, and new_tokens where they are not all."""
        work, plan = self.workload, self.workload.schedule
        shape = {"layers": work.size.layers, "prompt_tokens": plan.prompt_tokens, "batch_size": work.batch_size}
        tokens = {"image_tokens": plan.image_tokens, "image_tokens_kept": plan.image_tokens_kept}
        neurons = {"neurons": work.size.shape.ffn, "neurons_kept": work.neurons}
        sizes = {"new_tokens": self.new_tokens, **shape, **tokens, **neurons}
        return BenchRow(method=self.spec, decoder=self.decoder, phase=phase, **(sizes | self.bounds(phase) | more))

    # --- bounds -------------------------------------------------------------------------------------------------

    def bounds(self, phase: str) -> dict[str, float | None]:
        """Operations, bytes, the least time, and what they allow over dense; nothing for parts that need not be."""
        work, dense = self.workload, self.dense
        if phase == VISION:
            return self._bounds(work.vision_flops, work.vision_bytes, 1.0)
        if phase == PREFILL:
            least = self._bounds(work.prefill_flops, work.prefill_bytes, prefill_bound(dense, work))
            return least | {"flops_counted": self.counted}
        if phase == DECODE:
            step = self.middle
            return self._bounds(work.decode_flops(step), work.decode_bytes(step), decode_bound(dense, work, step))
        return {}

    def _bounds(self, flops: float, moved: float, speedup: float) -> dict[str, float | None]:
        least = self.roofline.bound_seconds(flops, moved)
        return {"flops": flops, "bytes": moved, "limit_ms": 1000 * least, "limit_speedup": speedup}

    def end_to_end_bounds(self, length: int) -> dict[str, float | None]:
        """The sums over vision, prefill and steps; what they allow is dense's least time over this one's."""
        least = 1000 * self._least(self.workload, length)
        return {"limit_ms": least, "limit_speedup": 1000 * self._least(self.dense, length) / least}

    def _least(self, work: Workload, length: int) -> float:
        parts = [(work.vision_flops, work.vision_bytes), (work.prefill_flops, work.prefill_bytes)]
        parts += [(work.decode_flops(step), work.decode_bytes(step)) for step in range(1, length)]
        return sum(self.roofline.bound_seconds(flops, moved) for flops, moved in parts)


def measured_rows(measurement: Measurement, times: Sequence[AnswerTimes]) -> Iterator[BenchRow]:
    parts: Mapping[str, Callable[[AnswerTimes], float | None]] = {
        VISION: lambda one: one.vision,
        PREFILL: lambda one: one.prefill,
        SELECTION: lambda one: one.selection,
        GATHERING: lambda one: one.gathering,
        DECODE: lambda one: one.decode,
    }
    for phase, part in parts.items():
        seconds = [part(one) for one in times]
        if any(seconds):  # a dense model chooses and copies nothing, and one token takes no step
            yield measurement.row(phase, samples_ms=[1000 * s for s in seconds if s is not None])
    for length in lengths_up_to(measurement.new_tokens):
        ends = [1000 * one.tokens[length - 1] for one in times]
        yield measurement.row(END_TO_END, new_tokens=length, samples_ms=ends, **measurement.end_to_end_bounds(length))


def projected_rows(measurement: Measurement, profile: DeviceProfile) -> Iterator[BenchRow]:
    """The tower's own arithmetic and bytes apart; the overhead of the pass and what is streamed are the prefill's."""
    work = measurement.workload
    vision = pass_time(Demand(work.vision_flops, work.vision_bytes, 0), profile, work.dtype)
    vision_ms = 1000 * (vision.arithmetic + vision.memory)
    if work.vision_flops:  # models of text alone have no tower
        yield measurement.row(VISION, projected_ms=vision_ms)
    yield measurement.row(PREFILL, projected_ms=1000 * projected_prefill(work, profile).seconds - vision_ms)
    if measurement.new_tokens > 1:
        yield measurement.row(DECODE, projected_ms=1000 * projected_decode(work, profile, measurement.middle).seconds)
    for length in lengths_up_to(measurement.new_tokens):
        whole, bounds = 1000 * projected_end_to_end(work, profile, length), measurement.end_to_end_bounds(length)
        yield measurement.row(END_TO_END, new_tokens=length, projected_ms=whole, **bounds)


def memory_row(
    measurement: Measurement, kv_bytes: int | None = None, workspace: int | None = None, peak: int | None = None
) -> BenchMemory:
    """kv_bytes: of the cache after the prefill, as measured; left out where nothing was run."""
    work = measurement.workload
    return BenchMemory(
        method=measurement.spec,
        decoder=measurement.decoder,
        batch_size=work.batch_size,
        kv_cache_mib=None if kv_bytes is None else kv_bytes / MIB,
        kv_cache_mib_paper=work.paper_kv_bytes / MIB,
        ffn_gb=work.ffn_bytes / GB,
        ffn_read_gb=work.ffn_bytes_read / GB,
        total_gb=work.total_bytes / GB,
        workspace_mib=None if workspace is None else workspace / MIB,
        peak_gb=None if peak is None else peak / GB,
    )


def lengths_up_to(new_tokens: int) -> list[int]:
    """Lengths of answer whose time a longer answer tells: that of its own first tokens."""
    return sorted({length for length in LENGTHS if length < new_tokens} | {new_tokens})
