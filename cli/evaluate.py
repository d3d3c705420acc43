"""`coremat eval`: methods side by side on tasks, through lmms-eval."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coremat.cli import console
from coremat.cli.options import Device, Dtype, MaxPixels, MinPixels, Model, Seed, Square, System
from coremat.errors import ConfigError, UnsupportedError
from coremat.methods import DEFAULT_METHODS, METHODS, parse_method

if TYPE_CHECKING:
    from coremat.config import SparsityConfig
    from coremat.loading import LoadedModel
    from coremat.results.record import Record

TASKS = "easyvqa,shapes"
DEFAULTS = ",".join(DEFAULT_METHODS)
BUNDLED_MODEL = "shapes-llava"  # coremat.loading.BUNDLED, which would bring torch along
TIMING_ONLY = "timing only; coremat bench has it."
BUNDLED_LIMIT = 400  # questions per task: minutes on two cores; the bundled tasks are stored in a shuffled order


def evaluate(
    model: Model = BUNDLED_MODEL,
    tasks: Annotated[str, typer.Option(help="Comma-separated tasks (coremat list tasks), or lmms-eval's own.")] = TASKS,
    methods: Annotated[
        str,
        typer.Option(help="all, or comma-separated methods (coremat list methods), with options: fastv:tokens=64."),
    ] = DEFAULTS,
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
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the record; the same folder goes on with a stopped run.")
    ] = None,
) -> None:
    """Evaluate methods on tasks; write record.json, samples.jsonl and tables; print the table."""
    asked = names("tasks", tasks)
    specs = list(METHODS) if methods == "all" else names("methods", methods)
    number = parse_limit(limit, model)
    from coremat.loading import load
    from coremat.reading import reading_of
    from coremat.tasks import resolve_task
    from coremat.tasks.runner import evaluate as run_evaluation

    for spec in specs:
        parse_method(spec)
    for task in asked:
        resolve_task(task)
    folder = output or Path("coremat-runs") / f"eval-{datetime.now():%Y%m%d-%H%M%S}"
    console.say(f"{model}: {', '.join(specs)} on {', '.join(asked)}, {_how_many(number)}; record in {folder}")
    reading = reading_of(model, system_prompt, square_images, min_pixels, max_pixels)
    console.say(f"questions and images are read: {reading.in_words}")
    loaded = load(model, device, dtype, reading)
    configs, skipped = _configs(loaded, specs, image_tokens)
    try:
        with console.progress() as advance:
            record = run_evaluation(loaded, asked, configs, number, batch_size, seed, folder, advance, skipped=skipped)
    except KeyboardInterrupt:
        console.say(f"stopped; what is done is kept. The same command with --output {folder} goes on from there.")
        raise typer.Exit(130) from None
    _show(record, folder)


def _configs(
    loaded: "LoadedModel", specs: list[str], image_tokens: int | None
) -> tuple[dict[str, "SparsityConfig"], dict[str, str]]:
    """The methods that this model can run, and why it cannot run the others. ConfigErrors end the command."""
    from coremat.profile.support import hindrance

    budget = {} if image_tokens is None else {"tokens": image_tokens}
    configs, skipped = {}, {}
    for spec in specs:
        config = parse_method(spec, prune_layer=loaded.prune_layer, **budget)
        why = TIMING_ONLY if config.neurons == "predicted" else hindrance(loaded.model, config, UnsupportedError)
        if why is None:
            configs[spec] = config
        else:
            skipped[spec] = why
    if not configs:
        raise UnsupportedError("; ".join(f"{spec}: {why}" for spec, why in skipped.items()))
    return configs, skipped


def _show(record: "Record", folder: Path) -> None:
    from coremat.results.tables import eval_table, to_rich

    console.show(to_rich(eval_table(record)))
    console.say(f"record: {folder / 'record.json'} (also samples.jsonl, table.md, table.csv, table.tex)")


def names(option: str, text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"--{option} is {text!r}; accepted: at least one name.")
    return names


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
