"""`coremat eval --preset` and `--dry-run`: the tasks and methods of a table of the paper, and what would be run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from coremat.cli import console
from coremat.errors import ConfigError

Preset = Annotated[
    str | None, typer.Option(help="paper-table-2, -4, -5, -6, -7 or -8: its tasks, methods and budgets of tokens.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be run and how much of it, and stop.")]
Bench = Annotated[
    Path | None, typer.Option(help="Record of a bench of the same model: --dry-run estimates the time by it.")
]


def of_preset(preset: str, model: str, also_typed: bool) -> tuple[list[str], list[str]]:
    """The tasks and methods of a preset. ConfigError if tasks or methods were typed beside it."""
    if also_typed:
        raise ConfigError(f"--preset is {preset!r} beside --tasks or --methods; accepted: the preset, or these.")
    from coremat.tasks.paper.presets import preset_of

    found = preset_of(preset, model)
    return list(found.tasks), list(found.methods)


def show_plan(
    model: str,
    tasks: Sequence[str],
    methods: Sequence[str],
    image_tokens: int | None,
    limit: int | float | None,
    data_root: Path | None,
    bench: Path | None,
) -> None:
    """Print the tasks and the methods with their sums. Of the model its config is read, and none of its weights."""
    from coremat.cli.eval import runnable
    from coremat.models.architecture import bare_model
    from coremat.models.families import check_takes_images
    from coremat.models.load import config_of, own_prune_layer
    from coremat.results.record.bench import BenchRecord
    from coremat.tasks.catalogue import ASKED_OF, resolve_tasks
    from coremat.tasks.run.plan import make_plan
    from coremat.tasks.run.plan_tables import methods_table, tasks_table

    resolve_tasks(tasks)
    record = None if bench is None else BenchRecord.read(bench)
    config = config_of(model)
    check_takes_images(model, config, ASKED_OF)
    given, skipped = runnable(bare_model(config, "meta"), methods, own_prune_layer(config), image_tokens)
    plan = make_plan(model, tasks, list(given), skipped, limit, data_root, record)
    tables = (tasks_table(plan), methods_table(plan))
    for table in tables:
        console.show(replace(table, notes=()))
    for note in (note for table in tables for note in table.notes):
        console.log(note)
