"""Times projected from counted operations and bytes, for a device that is not here.

A pass through the model (the prefill, or one decode step) takes the sum of four times; nothing overlaps:

    operations / (data-sheet rate x compute efficiency)
    + bytes read from the device's memory / its bandwidth
    + bytes streamed over the host link / (data-sheet rate x link efficiency)
    + overhead

Streamed, at every pass, is what the pass needs on the device beyond the device's memory. A prefill needs all weights,
sparse or not. Decoding needs the resident set, of whose FFNs only core rows where neurons are pruned; they come by
while the prefill streams, so moving them is not counted again. The overhead is the host's time per pass, and whatever
else the figures of a device do not explain. `coremat.hardware.titanxp_calibration` says where these are from and how
far off.
"""

from dataclasses import dataclass

from coremat.cost.workload import Workload
from coremat.errors import UnsupportedError
from coremat.hardware.profiles import GIB, DeviceProfile


@dataclass(frozen=True)
class Demand:
    """What one pass asks of a device. touched: bytes that it reads or writes; resident: bytes that it needs there."""

    flops: float
    touched: float
    resident: float

    def streamed(self, profile: DeviceProfile) -> float:
        return min(self.touched, max(0.0, self.resident - profile.usable_bytes))


@dataclass(frozen=True)
class PassTime:
    """Seconds of one pass, by what takes them."""

    arithmetic: float
    memory: float
    link: float
    overhead: float

    @property
    def seconds(self) -> float:
        return self.arithmetic + self.memory + self.link + self.overhead


def prefill_demand(workload: Workload) -> Demand:
    return Demand(
        flops=workload.vision_flops + workload.prefill_flops,
        touched=workload.vision_bytes + workload.prefill_bytes,
        resident=workload.prefill_resident_bytes,
    )


def decode_demand(workload: Workload, step: int = 1) -> Demand:
    return Demand(workload.decode_flops(step), workload.decode_bytes(step), workload.resident_bytes(step))


def pass_time(demand: Demand, profile: DeviceProfile, dtype: str) -> PassTime:
    streamed = demand.streamed(profile)
    return PassTime(
        arithmetic=demand.flops / profile.rate(dtype),
        memory=(demand.touched - streamed) / profile.bandwidth,
        link=streamed / profile.link,
        overhead=profile.overhead_s,
    )


def projected_prefill(workload: Workload, profile: DeviceProfile) -> PassTime:
    """Vision tower, decoder, and the head of the first new token. UnsupportedError where the cache does not fit."""
    _check_cache(workload, profile, step=0)
    return pass_time(prefill_demand(workload), profile, workload.dtype)


def projected_decode(workload: Workload, profile: DeviceProfile, step: int = 1) -> PassTime:
    """One decode step, counted from 1. UnsupportedError where the cache does not fit."""
    _check_cache(workload, profile, step)
    return pass_time(decode_demand(workload, step), profile, workload.dtype)


def projected_end_to_end(workload: Workload, profile: DeviceProfile, new_tokens: int) -> float:
    """Seconds until that many new tokens are there; the first of them comes out of the prefill."""
    steps = (projected_decode(workload, profile, step).seconds for step in range(1, new_tokens))
    return projected_prefill(workload, profile).seconds + sum(steps)


def _check_cache(workload: Workload, profile: DeviceProfile, step: int) -> None:
    """Weights can be streamed, the cache cannot."""
    cache_bytes = workload.kv_bytes(step)
    if cache_bytes > profile.usable_bytes:
        raise UnsupportedError(
            f"the KV cache needs {cache_bytes / GIB:.2f} GiB; {profile.name} has {profile.usable_bytes / GIB:.2f} GiB."
        )
