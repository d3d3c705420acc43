"""Calibrations for the runs under `results/reference`: made once in the working folder, as `coremat calibrate` makes
them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeGuard

from coremat.generate import prepare
from coremat.methods.base import Method
from coremat.methods.calibrated import Calibrated
from coremat.methods.registry import parse
from coremat.models.known import BUNDLED
from coremat.models.load import LoadedModel
from coremat.runtime.calibration import calibrate
from coremat.tasks.calibration import Prompts, prompts_of_file, prompts_of_tasks
from coremat.tasks.catalogue import resolve_tasks
from coremat.tasks.lmms_eval.quiet import lmms_eval_quiet

BATCH_SIZE = 8


@dataclass(frozen=True)
class Data:
    """What a model answers to be calibrated: the validation scenes of a task, or the prompts of a file."""

    task: str = "shapes"
    file: Path | None = None
    prompts: int = 256

    @property
    def arguments(self) -> str:
        return f"--tasks {self.task}" if self.file is None else f"--prompts {self.file.name}"

    def read(self, loaded: LoadedModel) -> Prompts:
        if self.file is not None:
            return prompts_of_file(self.file, self.prompts, loaded.preprocessing)
        return prompts_of_tasks(resolve_tasks((self.task,)), loaded, self.prompts, 0, None)


SCENES = Data()


def with_calibration(spec: str, loaded: LoadedModel, folder: Path, data: Data = SCENES) -> Method:
    """The method as typed, with a calibration of its own where it needs one."""
    method = parse(spec, prune_layer=loaded.prune_layer)
    if not _needs_one(method):
        return method
    file = folder / file_name(spec)
    if not file.exists():
        _calibrate(method, spec, loaded, file, data)
    return replace(method, calibration=str(file))


def file_name(spec: str) -> str:
    """One file for all that a calibration serves: those of a method whose options it does not depend on."""
    method = parse(spec)
    parts = [f"{name}-{value}" for name, value in method.made_with()["options"].items()] if _needs_one(method) else []
    return "-".join([method.label, *parts]) + ".safetensors"


def _needs_one(method: Method) -> TypeGuard[Calibrated]:
    return isinstance(method, Calibrated)


def calibrate_commands(specs: Iterable[str], model: str = BUNDLED, data: Data = SCENES) -> list[str]:
    """What makes the calibrations of methods as typed, each file once."""
    first = {file_name(spec): spec for spec in reversed([*specs]) if _needs_one(parse(spec))}
    return [_command(spec, model, data) for spec in reversed(first.values())]


def _command(spec: str, model: str, data: Data) -> str:
    of = "" if model == BUNDLED else f" --model {model}"
    return f"coremat calibrate {spec}{of} {data.arguments} --limit {data.prompts} --output {file_name(spec)}"


def with_file(spec: str) -> str:
    """The method as typed, with its calibration."""
    return f"{spec}:calibration={file_name(spec)}" if _needs_one(parse(spec)) else spec


def _calibrate(method: Calibrated, spec: str, loaded: LoadedModel, file: Path, data: Data) -> None:
    with TemporaryDirectory() as noise, nullcontext() if data.file else lmms_eval_quiet(Path(noise)):
        prompts = data.read(loaded)
        found = calibrate(loaded.model, method, _batches(loaded, prompts))
    told = {"model": loaded.name, "command": _command(spec, loaded.name, data)}
    made_of = {"data": prompts.about, "data_sha256": prompts.digest}
    replace(found, about={**found.about, **told, **made_of}).write(file)


def _batches(loaded: LoadedModel, prompts: Prompts) -> Iterator[Mapping[str, Any]]:
    conversations = iter(prompts)
    while batch := list(islice(conversations, BATCH_SIZE)):
        yield prepare(loaded, batch)
