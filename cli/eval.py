"""`coremat eval`: methods side by side on tasks, through lmms-eval."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coremat.cli import console
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
from coremat.cli.plan import Bench, DryRun, Preset, of_preset, show_plan
from coremat.cli.report import Report, show_table
from coremat.errors import ConfigError
from coremat.methods.registry import DEFAULTS, all_names, parse

if TYPE_CHECKING:
    from coremat.methods.base import Method
    from coremat.tasks.judge.client import Judge

TASKS = "easyvqa,shapes"
METHODS = ",".join(DEFAULTS)
BUNDLED_MODEL = "shapes-llava"  # coremat.models.load.BUNDLED, which would bring torch along
BUNDLED_LIMIT = 400  # questions per task: minutes on two cores; the bundled tasks are stored in a shuffled order


def evaluate(
    model: Model = BUNDLED_MODEL,
    tasks: Annotated[
        str, typer.Option(help="Comma-separated tasks or groups (coremat list tasks), or lmms-eval's own.")
    ] = TASKS,
    methods: Annotated[
        str,
        typer.Option(
            help="all, or comma-separated methods (coremat list methods), with options: fastv:tokens=64. "
            "./mine.py:Class:tokens=64 is a method of your own, and runs that file's code."
        ),
    ] = METHODS,
    preset: Preset = None,
    dry_run: DryRun = False,
    bench: Bench = None,
    limit: Annotated[
        str,
        typer.Option(help=f"Questions per task, a share below 1, or all. auto: {BUNDLED_LIMIT} for the bundled model."),
    ] = "auto",
    image_tokens: Annotated[
        int | None, typer.Option(min=1, help="One budget for all methods that prune tokens; their own by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    system_prompt: System = "auto",
    square_images: Square = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    frames: Frames = None,
    data_root: DataRoot | None = None,
    judge_url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible server for graded tasks; its key: OPENAI_API_KEY."),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The model that grades there.")] = None,
    num_processes: Annotated[
        int, typer.Option(min=1, help="Processes on this machine, a GPU each; several machines: torchrun.")
    ] = 1,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the record; the same folder goes on with a stopped run.")
    ] = None,
    report: Report = None,
) -> None:
    """Evaluate methods on tasks; write record.json, samples.jsonl and tables; print the table."""
    asked = names("tasks", tasks)
    specs = list(all_names()) if methods == "all" else names("methods", methods)
    if preset is not None:
        asked, specs = of_preset(preset, model, also_typed=(tasks, methods) != (TASKS, METHODS))
    number = parse_limit(limit, model)
    if bench is not None and not dry_run:
        raise ConfigError(f"--bench is {str(bench)!r} without --dry-run; accepted: both, or neither.")
    if dry_run:
        show_plan(model, asked, specs, image_tokens, number, data_root, bench)
        return
    from coremat.models.families import check_takes_images
    from coremat.models.load import config_of, load
    from coremat.preprocessing.prompt_format import preprocessing_of
    from coremat.tasks.catalogue import ASKED_OF, resolve_tasks
    from coremat.tasks.data.local import require
    from coremat.tasks.judge.scoring import require_judge
    from coremat.tasks.run.ranks import is_first, launched, own_device
    from coremat.tasks.run.runner import evaluate as run_evaluation

    for spec in specs:
        parse(spec)
    infos = resolve_tasks(asked)
    if data_root is not None:
        require(data_root, infos)
    folder = output or Path("coremat-runs") / f"eval-{datetime.now():%Y%m%d-%H%M%S}"
    judge = _judge(judge_url, judge_model, folder)
    require_judge(infos, judge)
    check_takes_images(model, config_of(model), ASKED_OF)
    preprocessing = preprocessing_of(model, system_prompt, square_images, min_pixels, max_pixels, frames)
    log = console.log if is_first() else _nothing
    if num_processes > 1 and not launched():
        with stopping(folder, log):
            _in_processes(num_processes, folder)
        return
    log(f"{model}: {', '.join(specs)} on {', '.join(asked)}, {_how_many(number)}; record in {folder}")
    log(f"questions and images are read: {preprocessing.in_words}")
    if judge and is_first():
        judge.probe()
    loaded = load(model, own_device(device), dtype, preprocessing)
    chosen, skipped = runnable(loaded.model, specs, loaded.prune_layer, image_tokens, seed)
    with stopping(folder, log), console.progress(shown=is_first()) as bar:
        record = run_evaluation(
            loaded,
            asked,
            chosen,
            number,
            batch_size,
            seed,
            folder,
            bar,
            skipped=skipped,
            data_root=data_root,
            judge=judge,
            log=bar.log if is_first() else _nothing,
        )
    if is_first():
        from coremat.results.tables.eval import eval_table

        show_table(eval_table(record), report)
        log(f"record: {folder / 'record.json'} (also samples.jsonl, table.md, table.csv, table.tex)")


@contextmanager
def stopping(folder: Path, log: Callable[[str], None]) -> Iterator[None]:
    """A user's stop is no error."""
    try:
        yield
    except KeyboardInterrupt:
        log(f"stopped; what is done is kept. The same command with --output {folder} goes on from there.")
        raise typer.Exit(130) from None


def _nothing(text: str) -> None:
    """Of several processes the first one speaks."""


def _judge(url: str | None, model: str | None, folder: Path) -> "Judge | None":
    if url is None and model is None:
        return None
    if url is None or model is None:
        raise ConfigError("--judge-url and --judge-model belong together; one of them is missing.")
    from coremat.tasks.judge.client import Judge

    return Judge(url, model, folder / "judge.jsonl")


def _in_processes(number: int, folder: Path) -> None:
    """The same command as so many ranks, with one folder for all."""
    from coremat.cli.launch import launch

    launch(number, [*sys.argv[1:], "--output", str(folder)], folder)


def runnable(
    model: Any, specs: Sequence[str], prune_layer: int, image_tokens: int | None, seed: int = 0
) -> tuple[dict[str, "Method"], dict[str, str]]:
    """The methods that this model can run, and why it cannot run the others; UnsupportedError if it can run none.

    prune_layer, image_tokens, seed: for the methods that have such an option and were typed without it.
    """
    from coremat.runtime.support import given_and_skipped

    budget = {} if image_tokens is None else {"tokens": image_tokens}
    methods = {spec: parse(spec, prune_layer=prune_layer, seed=seed, **budget) for spec in specs}
    return given_and_skipped(model, methods)


def parse_limit(text: str, model: str) -> int | float | None:
    """A count, a share below 1, "all" (None), or "auto"."""
    if text == "all":
        return None
    if text == "auto":
        return BUNDLED_LIMIT if model == BUNDLED_MODEL else None
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if number <= 0 or (number >= 1 and number != int(number)):
        raise ConfigError(f"--limit is {text!r}; accepted: a count of questions, a share between 0 and 1, all, auto.")
    return number if number < 1 else int(number)


def _how_many(limit: int | float | None) -> str:
    if limit is None:
        return "all questions"
    if limit < 1:
        return f"the first {limit:.0%} of the questions of each"
    return f"the first {limit} questions of each (the bundled tasks are stored shuffled, by a fixed seed)"
