"""Calibrations for the runs under `results/reference`: made once in the working folder, on the bundled model's
validation scenes, as `coremat calibrate METHOD --tasks shapes` makes them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coremat.generate import prepare
from coremat.methods.base import Method
from coremat.methods.calibrated import Calibrated
from coremat.methods.registry import parse
from coremat.models.load import LoadedModel
from coremat.runtime.calibration import calibrate
from coremat.tasks.calibration import Prompts, prompts_of_tasks
from coremat.tasks.catalogue import resolve_tasks
from coremat.tasks.lmms_eval.quiet import lmms_eval_quiet

TASK, PROMPTS, BATCH_SIZE = "shapes", 256, 8


def with_calibration(spec: str, loaded: LoadedModel, folder: Path) -> Method:
    """The method as typed, with a calibration of its own where it needs one."""
    method = parse(spec, prune_layer=loaded.prune_layer)
    if not isinstance(method, Calibrated):
        return method
    file = folder / file_name(spec)
    if not file.exists():
        _calibrate(method, spec, loaded, file)
    return replace(method, calibration=str(file))


def file_name(spec: str) -> str:
    return f"{spec.replace(':', '-').replace('=', '-')}.safetensors"


def calibrate_command(spec: str) -> str | None:
    """What makes the calibration of a method as typed; None for one that needs none."""
    if not isinstance(parse(spec), Calibrated):
        return None
    return f"coremat calibrate {spec} --tasks {TASK} --limit {PROMPTS} --output {file_name(spec)}"


def with_file(spec: str) -> str:
    """The method as typed, with its calibration."""
    return f"{spec}:calibration={file_name(spec)}" if calibrate_command(spec) else spec


def _calibrate(method: Calibrated, spec: str, loaded: LoadedModel, file: Path) -> None:
    with TemporaryDirectory() as noise, lmms_eval_quiet(Path(noise)):
        prompts = prompts_of_tasks(resolve_tasks((TASK,)), loaded, PROMPTS, 0, None)
        found = calibrate(loaded.model, method, _batches(loaded, prompts))
    told = {"model": loaded.name, "command": calibrate_command(spec)}
    data = {"data": prompts.about, "data_sha256": prompts.digest}
    replace(found, about={**found.about, **told, **data}).write(file)


def _batches(loaded: LoadedModel, prompts: Prompts) -> Iterator[Mapping[str, Any]]:
    conversations = iter(prompts)
    while batch := list(islice(conversations, BATCH_SIZE)):
        yield prepare(loaded, batch)
