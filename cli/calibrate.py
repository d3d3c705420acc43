"""`coremat calibrate`: fit a method that needs it to a model, on the model's own answers, or measure on these what
pruning each layer costs."""

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
from coremat.cli.calibrations import Costs, Fit, Made
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

if TYPE_CHECKING:
    from coremat.methods.calibration_file import Calibration
    from coremat.models.load import LoadedModel
    from coremat.progress import Progress
    from coremat.tasks.calibration import Prompts


def calibrate(
    method: Annotated[
        str,
        typer.Argument(
            help="A method that takes a calibration, with options: predictor:rank=64; cats; teal. With --layer-shares "
            "any method with the option layer_shares."
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="The file to write, for METHOD:calibration=FILE, or METHOD:layer_shares=FILE.")
    ],
    layer_shares: Annotated[
        bool,
        typer.Option("--layer-shares", help="Measure what pruning a layer costs, for METHOD:layer_shares=FILE."),
    ] = False,
    shares: Annotated[
        str, typer.Option(help="Comma-separated shares of a layer's neurons that --layer-shares measures, ascending.")
    ] = "0.2,0.4,0.6,0.8",
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

    made: Made = Costs(method, shares, new_tokens) if layer_shares else Fit(method, new_tokens, tokens, seed)
    if (tasks is None) == (prompts is None):
        raise ConfigError("--tasks and --prompts are given both or not at all; accepted: one of them.")
    _make_room(output)
    preprocessing = preprocessing_of(model, system_prompt, square_images, min_pixels, max_pixels, frames)
    loaded = load(model, device, dtype, preprocessing)
    made.check(loaded.model)
    with console.progress("reading prompts") as bar, _prompts(loaded, tasks, prompts, limit, seed, data_root) as given:
        fitted = _made(made, loaded, given, bar, batch_size)
    told = {"model": model, "data": given.about, "data_sha256": given.digest}
    found = replace(fitted, about={**fitted.about, **told, "command": shlex.join(["coremat", *sys.argv[1:]])})
    found.write(output)
    _show(made, found, output)


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


def _made(made: Made, loaded: "LoadedModel", given: "Prompts", bar: "Progress", batch_size: int) -> "Calibration":
    """With a step of the bar for each prompt and each layer."""
    from coremat.generate import prepare
    from coremat.methods.calibration_file import sizes
    from coremat.progress import Step

    total = given.count + made.units(sizes(loaded.model)["layers"], -(-given.count // batch_size))

    def batches() -> Iterator[Mapping[str, Any]]:
        conversations = iter(given)
        bar(Step(total, "answering prompts", 0))
        while batch := list(islice(conversations, batch_size)):
            yield prepare(loaded, batch)
            bar(Step(total, "answering prompts", len(batch)))

    return made.make(loaded.model, batches(), lambda: bar(Step(total, "going through layers", 1)))


def _show(made: Made, found: "Calibration", output: Path) -> None:
    figures = made.figures(found)
    rows = [
        (str(layer), *(f"{values[layer]:.3g}" for values in figures.values()))
        for layer in range(found.about["sizes"]["layers"])
    ]
    if figures:
        show_list(f"{made.spec} by layer", ("layer", *figures), rows, numeric=tuple(figures))
    about = found.about
    held = f", {about['held_out_tokens']} of them held out" if "held_out_tokens" in about else ""
    console.log(f"{about['prompts']} prompts, {about['tokens']} tokens of their answers{held}")
    for part in about["data"]:
        if part.get("scored_on"):
            console.log(f"{part['task']} is scored on these questions too: the split {part['split']}")
    console.log(f"use it: {made.spec}:{made.option}={output}")
