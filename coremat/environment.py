"""Where a run was made: versions, processor, threads, device. It goes into the record, beside the numbers."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("coremat", "torch", "transformers", "triton", "accelerate", "lmms-eval", "datasets")


def environment(device: str, dtype: str) -> dict[str, object]:
    """Plain JSON."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "cpu": _of_processor("model name") or platform.processor() or platform.machine(),
        "cpu_mhz": _of_processor("cpu MHz"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "gpu": _gpu(torch.device(device)),
        "dtype": dtype,
    }


def _versions() -> dict[str, str]:
    """Of the packages that are here: a bench needs no lmms-eval."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _gpu(device: torch.device) -> dict[str, object] | None:
    if device.type != "cuda":
        return None
    card = torch.cuda.get_device_properties(device)
    capability = f"{card.major}.{card.minor}"
    return {"name": card.name, "memory_bytes": card.total_memory, "capability": capability, "cuda": torch.version.cuda}


def _of_processor(field: str) -> str | None:
    """What Linux says of the first processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field)
    return next(found, None)
