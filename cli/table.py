"""`coremat table`: a table of the paper, with ours beside it where a record is given."""

from pathlib import Path
from typing import Annotated

import typer

from coremat.cli import console
from coremat.errors import ConfigError

FORMATS = ("rich", "markdown", "csv", "latex")


def table(
    number: Annotated[int, typer.Argument(help="1 to 8.")],
    record: Annotated[list[Path] | None, typer.Option(help="Folder or record.json of a run; may be repeated.")] = None,
    form: Annotated[str, typer.Option("--format", help=", ".join(FORMATS) + ".")] = "rich",
) -> None:
    """Print a table of the paper; rows that were measured here stand below the paper's."""
    if form not in FORMATS:
        raise ConfigError(f"--format is {form!r}; accepted: {', '.join(FORMATS)}.")
    from coremat.results.bench_record import read_any
    from coremat.results.paper_tables import beside
    from coremat.results.tables import render, to_rich

    result = beside(number, [read_any(path) for path in record or []], paper_columns())
    if form == "rich":
        console.show(to_rich(result))
    else:
        print(render(result, form), end="")


def paper_columns() -> dict[tuple[str, str], str]:
    """The paper's column of (task, metric), for each name that a row or a remark of a record may give the task."""
    from coremat.tasks.catalogue import TASKS

    return {
        (name, metric): column
        for task in TASKS.values()
        for name in (task.name, *(task.tasks if len(task.tasks) == 1 else ()))  # of several it is their mean's alone
        for metric, column in task.columns.items()
    }
