"""`coremat data check|fetch`: local copies of the datasets that tasks need."""

from typing import Annotated

import typer

from coremat.cli import console
from coremat.cli.list import show_list
from coremat.cli.options import DataRoot, names

Tasks = Annotated[str, typer.Option(help="Comma-separated tasks or groups (coremat list tasks).")]


def check(tasks: Tasks, data_root: DataRoot) -> None:
    """Say which datasets are there and which are missing; exit code 1 if one is."""
    from coremat.tasks.catalogue import resolve_tasks
    from coremat.tasks.data.local import missing, questions_there

    infos = [info for info in resolve_tasks(names("tasks", tasks)) if info.data]
    lacking = {one.task.name: ", ".join(one.parts) for one in missing(data_root, infos)}
    rows = []
    for info in infos:
        counts = ", ".join(f"{split} {rows:,}" for split, rows in questions_there(data_root, info).items())
        size = info.data.readable_size if info.data and info.name in lacking else ""
        path = info.data.path if info.data else ""
        rows.append((info.name, path, lacking.get(info.name, ""), counts, size))
    show_list(f"Under {data_root}", ("task", "dataset", "missing", "questions there", "to fetch"), rows)
    if lacking:
        console.log(f"where there is a hub: coremat data fetch --tasks {','.join(lacking)} --data-root {data_root}")
        raise typer.Exit(1)
    console.log("nothing is missing")


def fetch(tasks: Tasks, data_root: DataRoot) -> None:
    """Bring the datasets from the hub: only the splits that are asked. What is there already is not fetched again."""
    from coremat.tasks.catalogue import resolve_tasks
    from coremat.tasks.data.fetch import fetch as bring

    for info in resolve_tasks(names("tasks", tasks)):
        size = f", {info.data.readable_size}" if info.data and info.data.size else ""
        console.log(f"{info.name}: {info.data.path if info.data else 'brings its own data'}{size}")
        folder = bring(data_root, info)
        if folder is not None:
            console.log(f"{info.name}: in {folder}")


data = typer.Typer(help="Local copies of datasets.", no_args_is_help=True)
data.command("check")(check)
data.command("fetch")(fetch)
