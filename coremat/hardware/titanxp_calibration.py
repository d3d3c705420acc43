"""The figures of the Titan Xp's profile that no data sheet has, and how far projections are from the paper's Table 3.

Compute efficiency, link efficiency and overhead are solved from three of the table's twelve latencies: dense prefill,
dense decoding, CoreMatching's decoding. Working memory, which the device loses, is the dense row's total less weights
and cache. Nothing is fitted to the other nine latencies.

How the table is read, in the calibration and in the check:
- Its decode latencies are of 64 tokens: 0.845 "GFLOPs" are 64 times the 13.2 GFLOP of one dense token, in TFLOP. The
  step in the middle stands for their mean.
- Bytes are those of LLaVA-1.5-7B with the kept tokens that the KV column says and the share of FFN that the FFN column
  says (0.2 for CoreMatching). Units: see `coremat.cost.workload`.
- Operations are those printed. For the prefill they are, as `coremat.cost.flops` counts, those of a prompt of 755
  tokens (10.1 TFLOPs). The formula gives 8.5 for 576 + 34 tokens with the vision tower, so projecting such a prompt
  gives a shorter prefill than the table's row. For decoding those of CoreMatching fit neurons 0.35 to 0.4 rather than
  the FFN column's 0.2; arithmetic is 1 ms of a decode step either way.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy

from coremat.cost.model_size import ModelSize
from coremat.cost.schedule import Schedule
from coremat.cost.workload import Workload
from coremat.hardware.profiles import GIB, DeviceProfile, profile_of
from coremat.hardware.projection import Demand, decode_demand, pass_time, prefill_demand
from coremat.methods.corematching.corematching import CoreMatching
from coremat.models.architecture import shipped_config
from coremat.results.paper.printed import paper_table

MODEL, DEVICE, DTYPE = "llava-1.5-7b", "titanxp", "float16"
PAPER_GB = 1000 * 2**20
PAPER_MIB = 2**20
NEW_TOKENS = 64
TEXT_TOKENS = 34
PHASES = ("prefill", "decode")
CALIBRATED_ON = (("dense", "prefill"), ("dense", "decode"), ("corematching", "decode"))


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` finds; the names are those of a device profile."""

    compute_efficiency: float
    link_efficiency: float
    overhead_s: float
    reserved_gib: float


@dataclass(frozen=True)
class Comparison:
    """One latency of Table 3 beside its projection. calibrated: whether the figures were fitted to it."""

    method: str
    phase: str
    paper_s: float
    projected_s: float
    calibrated: bool

    @property
    def error_percent(self) -> float:
        return 100 * (self.projected_s / self.paper_s - 1)


def calibrate(device: DeviceProfile | None = None) -> Calibration:
    """Solve the projection, which is linear in 1 / efficiency and overhead, for the three latencies."""
    device = device or profile_of(DEVICE)
    reserved = _reserved_bytes() / GIB
    device = replace(device, reserved_gib=reserved)
    equations, seconds = [], []
    for method, phase in CALIBRATED_ON:
        demand = _demand(method, phase)
        streamed = demand.streamed(device)
        equations.append([demand.flops / device.peak_rate(DTYPE), streamed / (device.link_gb_s * 1e9), 1.0])
        seconds.append(_latency(method, phase) - (demand.touched - streamed) / device.bandwidth)
    compute, link, overhead = numpy.linalg.solve(equations, seconds).tolist()
    return Calibration(1 / compute, 1 / link, overhead, reserved)


def check_against_table3(device: DeviceProfile | None = None) -> list[Comparison]:
    """All twelve latencies as the profile projects them. A decode latency is of 64 tokens."""
    device = device or profile_of(DEVICE)
    return [
        Comparison(
            method=method,
            phase=phase,
            paper_s=_passes(phase) * _latency(method, phase),
            projected_s=_passes(phase) * pass_time(_demand(method, phase), device, DTYPE).seconds,
            calibrated=(method, phase) in CALIBRATED_ON,
        )
        for method in _table3()
        for phase in PHASES
    ]


def paper_workload(method: str) -> Workload:
    """The workload that a row of Table 3 stands for, by its columns for KV and FFN."""
    size = ModelSize.of(shipped_config(MODEL))
    row, dense = _table3()[method], _table3()["dense"]
    per_token = 2 * size.kv_values
    kept = round(row["kv_cache_mb"] * PAPER_MIB / per_token) - TEXT_TOKENS
    share = row["ffn_gb"] / dense["ffn_gb"]
    row_method = CoreMatching(tokens="all" if kept == size.image_tokens else kept, beta=share)
    schedule = Schedule.of(row_method, size.layers, size.shape, size.image_tokens, TEXT_TOKENS)
    return Workload(size, schedule, dtype=DTYPE)


@cache
def _table3() -> dict[str, Mapping[str, float]]:
    return {row["method"]: row for row in paper_table(3).frame.to_dict("records")}


def _reserved_bytes() -> float:
    return _table3()["dense"]["total_gb"] * PAPER_GB - paper_workload("dense").total_bytes


def _passes(phase: str) -> int:
    return NEW_TOKENS if phase == "decode" else 1


def _latency(method: str, phase: str) -> float:
    """Of one pass."""
    return _table3()[method][f"{phase}_latency_s"] / _passes(phase)


def _demand(method: str, phase: str) -> Demand:
    """Of one pass: the printed operations, and the bytes of the row's workload."""
    workload, row = paper_workload(method), _table3()[method]
    if phase == "prefill":
        return replace(prefill_demand(workload), flops=row["prefill_tflops"] * 1e12)
    # The column's heading says GFLOPs; see above.
    return replace(decode_demand(workload, NEW_TOKENS // 2), flops=row["decode_gflops"] * 1e12 / NEW_TOKENS)
