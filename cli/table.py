"""`coremat table`: a table of the paper, with ours beside it where a record is given."""

from pathlib import Path
from typing import Annotated

import typer

from coremat.checks import one_of
from coremat.cli import console

FORMATS = ("rich", "markdown", "csv", "latex")


def table(
    number: Annotated[int, typer.Argument(help="1 to 8.")],
    record: Annotated[list[Path] | None, typer.Option(help="Folder or record.json of a run; may be repeated.")] = None,
    form: Annotated[str, typer.Option("--format", help=", ".join(FORMATS) + ".")] = "rich",
) -> None:
    """Print a table of the paper; rows that were measured here stand below the paper's."""
    one_of("--format", form, FORMATS)
    from coremat.results.paper.tables import beside
    from coremat.results.record.bench import read_any
    from coremat.results.tables.eval import render

    result = beside(number, [read_any(path) for path in record or []], paper_columns())
    if form == "rich":
        console.show(result)
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
