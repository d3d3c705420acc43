"""`coremat eval`: methods side by side on tasks, through lmms-eval."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coremat.cli import console
from coremat.cli.options import Device, Dtype, Model, Seed
from coremat.errors import ConfigError
from coremat.methods import DEFAULT_METHODS, parse_method

if TYPE_CHECKING:
    from coremat.loading import LoadedModel
    from coremat.results.record import Record

TASKS = "easyvqa,shapes"
METHODS = ",".join(DEFAULT_METHODS)
BUNDLED_MODEL = "shapes-llava"  # coremat.loading.BUNDLED, which would bring torch along
BUNDLED_LIMIT = 400  # questions per task: minutes on two cores; the bundled tasks are stored in a shuffled order


def evaluate(
    model: Model = BUNDLED_MODEL,
    tasks: Annotated[str, typer.Option(help="Comma-separated tasks (coremat list tasks), or lmms-eval's own.")] = TASKS,
    methods: Annotated[
        str,
        typer.Option(help="Comma-separated methods (coremat list methods), with options: core-neurons:beta=0.2."),
    ] = METHODS,
    limit: Annotated[
        str,
        typer.Option(help=f"Questions per task, a share below 1, or all. auto: {BUNDLED_LIMIT} for the bundled model."),
    ] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the record; the same folder goes on with a stopped run.")
    ] = None,
) -> None:
    """Evaluate methods on tasks; write record.json, samples.jsonl and tables; print the table."""
    asked = names("tasks", tasks)
    specs = names("methods", methods)
    number = parse_limit(limit, model)
    from coremat.loading import load
    from coremat.tasks import resolve_task

    for spec in specs:
        parse_method(spec)
    for task in asked:
        resolve_task(task)
    folder = output or Path("coremat-runs") / f"eval-{datetime.now():%Y%m%d-%H%M%S}"
    console.say(f"{model}: {', '.join(specs)} on {', '.join(asked)}, {_how_many(number)}; record in {folder}")
    record = _run(load(model, device, dtype), asked, specs, number, batch_size, seed, folder)
    _show(record, folder)


def _run(
    loaded: "LoadedModel",
    tasks: list[str],
    specs: list[str],
    limit: float | int | None,
    batch_size: int,
    seed: int,
    folder: Path,
) -> "Record":
    from coremat.patch import apply
    from coremat.tasks.runner import evaluate as run_evaluation

    configs = {spec: parse_method(spec, prune_layer=loaded.prune_layer) for spec in specs}
    for config in configs.values():
        with apply(loaded.model, config):
            pass  # a layer that this model has not is refused before anything is written
    try:
        with console.progress() as advance:
            return run_evaluation(loaded, tasks, configs, limit, batch_size, seed, folder, advance)
    except KeyboardInterrupt:
        console.say(f"stopped; what is done is kept. The same command with --output {folder} goes on from there.")
        raise typer.Exit(130) from None


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
