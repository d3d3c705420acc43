"""`coremat calibrate`: fit a method that needs it to a model, on the model's own answers."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from errno import EISDIR
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coremat.cli import console
from coremat.cli.eval import BUNDLED_MODEL
from coremat.cli.list import show_list
from coremat.cli.options import (
    DataRoot,
    Device,
    Dtype,
    Frames,
    MaxPixels,
    MinPixels,
    Model,
    Seed,
    Square,
    System,
    names,
)
from coremat.errors import ConfigError, OutputError
from coremat.methods.registry import parse

if TYPE_CHECKING:
    from coremat.methods.calibrated import Calibrated
    from coremat.methods.calibration_file import Calibration
    from coremat.models.load import LoadedModel
    from coremat.progress import Progress
    from coremat.tasks.calibration import Prompts


def calibrate(
    method: Annotated[
        str, typer.Argument(help="A method that takes a calibration, with options: predictor:rank=64; cats; teal.")
    ],
    output: Annotated[Path, typer.Option(help="The file to write, for METHOD:calibration=FILE.")],
    model: Model = BUNDLED_MODEL,
    tasks: Annotated[
        str | None, typer.Option(help="Comma-separated tasks, of splits that are not scored where there are others.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help='Prompts of your own, a line each: {"question": "...", "image": "a path"}.')
    ] = None,
    limit: Annotated[int, typer.Option(min=4, help="Prompts of each task, or of the file.")] = 256,
    new_tokens: Annotated[int, typer.Option(min=2, help="Of each answer, at most.")] = 32,
    tokens: Annotated[int, typer.Option(min=32, help="Of all answers together, kept for the calibration.")] = 4096,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts answered at once.")] = 8,
    device: Device = "auto",
    dtype: Dtype = "auto",
    system_prompt: System = "auto",
    square_images: Square = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    frames: Frames = None,
    data_root: DataRoot | None = None,
    seed: Seed = 0,
) -> None:
    """Fit a method to a model's own answers, write the file that it runs with, and print what was reached."""
    from coremat.models.load import load
    from coremat.preprocessing.prompt_format import preprocessing_of
    from coremat.runtime.calibration import check_calibration

    chosen = _method(method)
    if (tasks is None) == (prompts is None):
        raise ConfigError("--tasks and --prompts are given both or not at all; accepted: one of them.")
    _make_room(output)
    preprocessing = preprocessing_of(model, system_prompt, square_images, min_pixels, max_pixels, frames)
    loaded = load(model, device, dtype, preprocessing)
    check_calibration(loaded.model, chosen)
    with console.progress("reading prompts") as bar, _prompts(loaded, tasks, prompts, limit, seed, data_root) as given:
        fitted = _fitted(loaded, chosen, given, bar, batch_size, new_tokens=new_tokens, tokens=tokens, seed=seed)
    told = {"model": model, "data": given.about, "data_sha256": given.digest}
    found = replace(fitted, about={**fitted.about, **told, "command": shlex.join(["coremat", *sys.argv[1:]])})
    found.write(output)
    _show(chosen, found, output)


def _method(spec: str) -> "Calibrated":
    from coremat.runtime.calibration import calibrated_part

    part = calibrated_part(parse(spec))
    if part.calibration is not None:
        raise ConfigError(f"method {spec!r} has a calibration already; accepted: {part.label} without that option.")
    return part


def _make_room(output: Path) -> None:
    """OutputError now for a file that could not be written in the end."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}") from error


@contextmanager
def _prompts(
    loaded: "LoadedModel", tasks: str | None, file: Path | None, limit: int, seed: int, data_root: Path | None
) -> "Iterator[Prompts]":
    """Of the file, or of the tasks, whose libraries speak into a file meanwhile."""
    from coremat.tasks.calibration import prompts_of_file, prompts_of_tasks
    from coremat.tasks.catalogue import resolve_tasks
    from coremat.tasks.data.local import require
    from coremat.tasks.lmms_eval.quiet import lmms_eval_quiet

    if file is not None:
        yield prompts_of_file(file, limit, loaded.preprocessing)
        return
    infos = resolve_tasks(names("tasks", tasks or ""))
    if data_root is not None:
        require(data_root, infos)
    with TemporaryDirectory() as noise, lmms_eval_quiet(Path(noise)):
        yield prompts_of_tasks(infos, loaded, limit, seed, data_root)


def _fitted(
    loaded: "LoadedModel", method: "Calibrated", given: "Prompts", bar: "Progress", batch_size: int, **options: int
) -> "Calibration":
    """The method's calibration, with a step of the bar for each prompt and each layer."""
    from coremat.generate import prepare
    from coremat.methods.calibration_file import sizes
    from coremat.progress import Step
    from coremat.runtime.calibration import calibrate as fit

    total = given.count + sizes(loaded.model)["layers"]

    def batches() -> Iterator[Mapping[str, Any]]:
        conversations = iter(given)
        bar(Step(total, "answering prompts", 0))
        while batch := list(islice(conversations, batch_size)):
            yield prepare(loaded, batch)
            bar(Step(total, "answering prompts", len(batch)))

    return fit(loaded.model, method, batches(), on_layer=lambda: bar(Step(total, "fitting layers", 1)), **options)


def _show(method: "Calibrated", found: "Calibration", output: Path) -> None:
    figures = method.figures(found.tensors)
    rows = [
        (str(layer), *(f"{float(values[layer]):.3g}" for values in figures.values()))
        for layer in range(found.about["sizes"]["layers"])
    ]
    if figures:
        show_list(f"{method.label} by layer", ("layer", *figures), rows, numeric=tuple(figures))
    about = found.about
    kept = f"{about['tokens']} tokens of their answers, {about['held_out_tokens']} of them held out"
    console.log(f"{about['prompts']} prompts, {kept}")
    for part in about["data"]:
        if part.get("scored_on"):
            console.log(f"{part['task']} is scored on these questions too: the split {part['split']}")
    console.log(f"use it: {method.label}:calibration={output}")
