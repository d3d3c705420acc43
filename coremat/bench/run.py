"""`coremat bench`: measured where the device is, projected onto a profile where it is not."""

import torch

from coremat.bench.measure import Keep, Outcome, measure
from coremat.bench.options import BenchOptions
from coremat.bench.project import project
from coremat.hardware.profiles import DeviceProfile, matches, profile_of
from coremat.models.load import DEVICES, pick_device
from coremat.progress import Progress


def bench(options: BenchOptions, progress: Progress = lambda step: None, keep: Keep = lambda record: None) -> Outcome:
    """Run what `options` ask for. keep: gets the record whenever rows are finished. CorematError for bad options."""
    if options.device.partition(":")[0] in DEVICES:
        return measure(options, pick_device(options.device), progress, keep)
    profile = profile_of(options.device)
    if _is_here(profile):
        return measure(options, "cuda", progress, keep)
    record = project(options, profile)
    keep(record)
    return Outcome(record)


def _is_here(profile: DeviceProfile) -> bool:
    return torch.cuda.is_available() and matches(profile, torch.cuda.get_device_name())
