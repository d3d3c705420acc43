"""`coremat list models|tasks|methods`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from coremat.cli import console

if TYPE_CHECKING:
    from coremat.tasks.catalogue import TaskInfo


def show_table(title: str, headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """A list of texts, long ones folded."""
    from rich.table import Column, Table

    columns = [Column(heading, overflow="fold") for heading in headings]
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.show(table)


def models() -> None:
    """Models that have a name; any folder or hub id of a supported family works too."""
    from coremat.catalogue import KNOWN_MODELS
    from coremat.profile.shipped_config import shipped_config
    from coremat.profile.support import method_support, summary

    headings = ("name", "checkpoint", "parameters", "image tokens", "methods", "here")
    rows = []
    for known in KNOWN_MODELS.values():
        methods = summary(method_support(shipped_config(known.name)))
        here = "yes" if known.is_here else ""
        checkpoint = known.checkpoint or "in the package"
        rows.append((known.name, checkpoint, f"{known.parameters:,}", known.image_tokens, methods, here))
    show_table("Models", headings, rows)
    console.say("here: weights in the package or in the local cache of Hugging Face; bench --weights random needs none")


def tasks() -> None:
    """Tasks and groups by name; any other generate_until task of lmms-eval works too, by its name there."""
    from coremat.tasks.catalogue import FOREIGN, GROUPS, TASKS

    headings = (
        "name",
        "what it is",
        "lmms-eval's task, split, questions",
        "prompt, metric",
        "paper's column, unlike it",
    )
    show_table("Tasks", headings, [_task_row(task) for task in TASKS.values()])
    show_table("Groups", ("name", "tasks"), [(name, ", ".join(members)) for name, members in GROUPS.items()])
    console.say(f"{FOREIGN}NAME is lmms-eval's own task where both have one of that name, with lmms-eval's own prompt")


def _task_row(task: "TaskInfo") -> tuple[str, ...]:
    data = f", {'/'.join(task.data.splits)}" if task.data else ""
    asked = f"{', '.join(task.tasks)}{data}, {task.questions:,}"
    graded = "; graded by a judge" if task.judge else ""
    main = next((score for score in task.scores if score.column), task.scores[0])
    scored = f"{main.metric}{graded}"
    paper = ", ".join(task.columns.values())
    how = f"{task.prompt}; {scored}" if task.prompt else scored
    return task.name, task.summary, asked, how, f"{paper}: {task.unlike}" if task.unlike else paper


def methods(
    model: Annotated[str | None, typer.Option(help="Say for this model whether it supports each method.")] = None,
) -> None:
    """Methods, and the options that a method takes (name:option=value)."""
    from coremat.config import SparsityConfig
    from coremat.methods import METHODS

    support = {} if model is None else _support(model)
    headings = ("name", "slot", "what it does") if model is None else ("name", "slot", f"with {model}")
    rows = [(m.name, m.config.slot, support.get(m.name, m.summary)) for m in METHODS.values()]
    show_table("Methods", headings, rows)
    console.say("what prunes tokens alone combines with core neurons: fastv+core-neurons")
    options = ", ".join(f"{name}={value}" for name, value in SparsityConfig().as_dict().items())
    console.say(f"options and defaults: {options}")


def _support(model: str) -> dict[str, str]:
    """For each method "yes", or why not."""
    from coremat.profile.shipped_config import config_of
    from coremat.profile.support import method_support

    return {name: reason or "yes" for name, reason in method_support(config_of(model)).items()}
