"""Calibrations of the tiny LLaVA, made once for each method as typed."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tiny import batch, tiny_llava

from coremat.methods.calibrated import Calibrated
from coremat.methods.registry import parse, with_options
from coremat.runtime.calibration import calibrate

PROMPTS = ("left-padded", "same-length", "one")
_folder = TemporaryDirectory()


@cache
def calibrated(spec: str) -> Calibrated:
    """The method with a calibration on the tiny LLaVA."""
    method = parse(spec)
    path = Path(_folder.name) / f"{spec.replace(':', '-')}.safetensors"
    calibrate(tiny_llava(), method, [batch(name) for name in PROMPTS], new_tokens=12).write(path)
    return with_options(method, calibration=str(path))
