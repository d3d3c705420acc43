"""`coremat fidelity`: how near methods are to the dense model, token by token of its own answers."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coremat.cli import console
from coremat.cli.eval import BUNDLED_MODEL, METHODS, runnable, stopping
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
from coremat.cli.report import Report, show_table
from coremat.errors import ConfigError
from coremat.methods.registry import all_names, parse

if TYPE_CHECKING:
    from coremat.preprocessing.prompt_format import Preprocessing
    from coremat.tasks.fidelity.questions import Questions

ACCEPTED = "accepted: one of --prompts, --tasks, and --images with --question."


def fidelity(
    model: Model = BUNDLED_MODEL,
    methods: Annotated[
        str,
        typer.Option(help="all, or comma-separated methods (coremat list methods), with options: griffin:beta=0.3."),
    ] = METHODS,
    prompts: Annotated[
        Path | None, typer.Option(help='Prompts of your own, a line each: {"question": "...", "image": "a path"}.')
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Comma-separated tasks (coremat list tasks).")] = None,
    images: Annotated[Path | None, typer.Option(help="A folder: every image in it is asked about.")] = None,
    question: Annotated[str | None, typer.Option(help="What is asked about each of --images.")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Of each dense answer, at most.")] = 64,
    limit: Annotated[int, typer.Option(min=1, help="Questions of each task, of the file, or images, at most.")] = 64,
    image_tokens: Annotated[
        int | None, typer.Option(min=1, help="One budget for all methods that prune tokens; their own by default.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    system_prompt: System = "auto",
    square_images: Square = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    frames: Frames = None,
    data_root: DataRoot | None = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the record; the same folder goes on with a stopped run.")
    ] = None,
    report: Report = None,
) -> None:
    """Measure KL and agreement with the dense model along its own answers.

    The dense model answers each question once, greedily. Every method is made
    to follow that answer in the decode path that it really takes: mean
    KL(dense || method) per token, agreement of the most probable token, NLL of
    the dense answer, and where decoding freely would leave it, each with its
    standard error over questions and by position, beside what the method saves.
    """
    specs = list(all_names()) if methods == "all" else names("methods", methods)
    _check_asked(prompts, tasks, images, question)
    from coremat.models.load import load
    from coremat.preprocessing.prompt_format import preprocessing_of
    from coremat.results.tables.fidelity import fidelity_table
    from coremat.tasks.fidelity.run import measure_fidelity

    for spec in specs:
        parse(spec)
    preprocessing = preprocessing_of(model, system_prompt, square_images, min_pixels, max_pixels, frames)
    asked = _questions(model, prompts, tasks, images, question, limit, preprocessing, data_root)
    folder = output or Path("coremat-runs") / f"fidelity-{datetime.now():%Y%m%d-%H%M%S}"
    console.log(f"{model}: {', '.join(specs)} along up to {new_tokens} tokens of dense answers; record in {folder}")
    loaded = load(model, device, dtype, preprocessing)
    chosen, skipped = runnable(loaded.model, specs, loaded.prune_layer, image_tokens, seed)
    with stopping(folder, console.log), console.progress("reading questions") as bar:
        record = measure_fidelity(
            loaded, asked, chosen, new_tokens, limit, seed, folder, bar, skipped=skipped, log=bar.log
        )
    show_table(fidelity_table(record), report)
    console.log(f"record: {folder / 'record.json'} (also samples.jsonl, tables, positions.csv, plots)")


def _check_asked(prompts: Path | None, tasks: str | None, images: Path | None, question: str | None) -> None:
    """One way of asking, and all of it."""
    given = [f"--{name}" for name, value in _sources(prompts, tasks, images).items() if value is not None]
    if len(given) != 1:
        raise ConfigError(f"asked is {' and '.join(given) or 'nothing'}; {ACCEPTED}")
    if (images is None) != (question is None):
        lone = "--question" if images is None else "--images"
        raise ConfigError(f"{lone} stands alone; {ACCEPTED}")


def _sources(prompts: Path | None, tasks: str | None, images: Path | None) -> dict[str, Any]:
    return {"prompts": prompts, "tasks": tasks, "images": images}


def _questions(
    model: str,
    prompts: Path | None,
    tasks: str | None,
    images: Path | None,
    question: str | None,
    limit: int,
    preprocessing: "Preprocessing",
    data_root: Path | None,
) -> "Questions":
    """What is asked, read before any weight is as far as it is cheap. UnsupportedError for images before a model of
    text alone."""
    from coremat.models.families import check_takes_images, takes_images
    from coremat.models.load import config_of
    from coremat.tasks.catalogue import ASKED_OF
    from coremat.tasks.fidelity.questions import questions_of_file, questions_of_images, questions_of_tasks

    config = config_of(model)
    if prompts is not None:
        return questions_of_file(prompts, limit, preprocessing, takes_images(config))
    if images is not None and question is not None:
        check_takes_images(model, config, "--prompts with questions alone, or a vision-language model")
        return questions_of_images(images, question, limit, preprocessing)
    check_takes_images(model, config, ASKED_OF)
    return questions_of_tasks(_resolved(names("tasks", tasks or ""), data_root), limit, preprocessing, data_root)


def _resolved(tasks: Sequence[str], data_root: Path | None) -> Any:
    from coremat.tasks.catalogue import resolve_tasks
    from coremat.tasks.data.local import require

    infos = resolve_tasks(tasks)
    if data_root is not None:
        require(data_root, infos)
    return infos
