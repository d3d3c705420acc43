"""Where a run was made: versions, processor, threads, device. It goes into the record, beside the numbers."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from coremat.loading import LoadedModel

PACKAGES = ("coremat", "torch", "transformers", "lmms-eval", "datasets")


def environment(loaded: LoadedModel) -> dict[str, object]:
    """Plain JSON."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": loaded.device,
        "gpu": torch.cuda.get_device_name() if loaded.device.startswith("cuda") else None,
        "dtype": loaded.dtype,
    }


def cpu_name() -> str:
    """The processor as Linux names it, else as Python does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
