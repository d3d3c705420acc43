"""Device profiles: devices by their data sheets, for times that are projected rather than measured: one JSON file each.

The shipped files are in `devices/`; a user's own has the same fields. Memory is in GiB (a data sheet's "12 GB" of a
graphics card are 12 GiB, within a per cent), rates are decimal, and rates of tensor cores are those of dense matrices.
No data sheet has the two efficiencies, the overhead and the reserved memory: each file's `note` says whether they were
calibrated or are assumptions.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from coremat.errors import ConfigError, DataError, UnknownNameError, UnsupportedError

GIB = 2**30
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """One device. A dtype that `tflops` leaves out is one that the device lacks.

    reserved_gib: memory that neither weights nor cache can have: the runtime's own, activations, fragmentation.
    link_gb_s: the host link, one direction. compute_efficiency, link_efficiency: shares of `tflops` and `link_gb_s`
    that are reached. overhead_s: what each pass through the model takes besides arithmetic and bytes.
    gpu_names: as CUDA calls the card, without the word NVIDIA. sources: where the figures are from.
    """

    name: str
    memory_gib: float
    bandwidth_gb_s: float
    tflops: Mapping[str, float]
    link_gb_s: float
    compute_efficiency: float
    link_efficiency: float
    overhead_s: float
    sources: tuple[str, ...]
    reserved_gib: float = 0.0
    gpu_names: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "note"):
            _text(name, getattr(self, name))
        for name in ("sources", "gpu_names"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        for name in ("memory_gib", "bandwidth_gb_s", "link_gb_s"):
            _number(name, getattr(self, name))
        for name in ("compute_efficiency", "link_efficiency"):
            _number(name, getattr(self, name), most=1)
        _number("overhead_s", self.overhead_s, zero=True)
        _number("reserved_gib", self.reserved_gib, zero=True, most=self.memory_gib)
        _check_rates(self.tflops)

    @property
    def usable_bytes(self) -> float:
        """Memory for weights and cache."""
        return (self.memory_gib - self.reserved_gib) * GIB

    @property
    def bandwidth(self) -> float:
        """Bytes per second from the device's own memory."""
        return self.bandwidth_gb_s * 1e9

    @property
    def link(self) -> float:
        """Bytes per second that the host link reaches."""
        return self.link_gb_s * 1e9 * self.link_efficiency

    def peak_rate(self, dtype: str) -> float:
        """Operations per second by the data sheet. UnsupportedError for a dtype that the device lacks."""
        if dtype not in self.tflops:
            raise UnsupportedError(f"{self.name} has no {dtype} arithmetic; accepted: {', '.join(self.tflops)}.")
        return self.tflops[dtype] * 1e12

    def rate(self, dtype: str) -> float:
        """Operations per second that are reached."""
        return self.peak_rate(dtype) * self.compute_efficiency


FIELDS = tuple(field.name for field in fields(DeviceProfile))
NEEDED = tuple(field.name for field in fields(DeviceProfile) if field.default is MISSING)


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{name} of the device profile is {value!r}; accepted: a text.")


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
        raise ConfigError(f"{name} of the device profile is {values!r}; accepted: a list of texts.")
    return tuple(values)


def _number(name: str, value: Any, zero: bool = False, most: float = math.inf) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero) or value > most:
        least = "a number from 0" if zero else "a number above 0"
        accepted = least if most == math.inf else f"{least} and up to {most:g}"
        raise ConfigError(f"{name} of the device profile is {value!r}; accepted: {accepted}.")


def _check_rates(tflops: object) -> None:
    if not isinstance(tflops, Mapping) or not tflops:
        raise ConfigError(
            f"tflops of the device profile is {tflops!r}; accepted: a rate for some of {', '.join(DTYPES)}."
        )
    for dtype, rate in tflops.items():
        if dtype not in DTYPES:
            raise UnknownNameError("dtype in tflops", dtype, DTYPES)
        _number(f"tflops of {dtype}", rate)


@cache
def shipped_devices() -> dict[str, DeviceProfile]:
    """The profiles that come with coremat, by name."""
    folder = Path(str(resources.files("coremat.hardware"))) / "devices"
    return {path.stem: _read(path) for path in sorted(folder.glob("*.json"))}


def profile_of(name_or_path: str) -> DeviceProfile:
    """A shipped device, or one from a user's JSON file. UnknownNameError, DataError or ConfigError."""
    shipped = shipped_devices()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    if path.suffix == ".json" or path.is_file():
        return _read(path)
    raise UnknownNameError("device", name_or_path, shipped)


def _read(path: Path) -> DeviceProfile:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read the device profile {path}: {error.strerror}.") from error
    except ValueError as error:
        raise DataError(f"{path} is not a device profile: it is not JSON ({error}).") from error
    if not isinstance(document, dict):
        raise DataError(f"{path} is not a device profile: it holds no object but a {type(document).__name__}.")
    for name in document:
        if name not in FIELDS:
            raise UnknownNameError(f"field of the device profile {path}", name, FIELDS)
    missing = [name for name in NEEDED if name not in document]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; a device profile needs {', '.join(NEEDED)}.")
    return DeviceProfile(**document)


def matches(profile: DeviceProfile, gpu_name: str) -> bool:
    """Whether a card with this CUDA name is the profile's: by the whole name, for an "H100 PCIe" is another card."""
    return _plain(gpu_name) in {_plain(name) for name in profile.gpu_names}


def _plain(gpu_name: str) -> str:
    return " ".join(gpu_name.lower().removeprefix("nvidia").split())


def device_rows() -> list[dict[str, object]]:
    """The shipped devices, one row each, None for what a device lacks."""
    return [
        {
            "name": profile.name,
            "card": profile.gpu_names[0],
            "memory_gib": profile.memory_gib,
            "bandwidth_gb_s": profile.bandwidth_gb_s,
            **{f"{dtype}_tflops": profile.tflops.get(dtype) for dtype in DTYPES},
            "link_gb_s": profile.link_gb_s,
            "compute_efficiency": profile.compute_efficiency,
            "link_efficiency": profile.link_efficiency,
            "overhead_ms": profile.overhead_s * 1e3,
            "note": profile.note,
        }
        for profile in shipped_devices().values()
    ]
