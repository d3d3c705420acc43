"""`coremat list models|tasks`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from coremat.cli import console

if TYPE_CHECKING:
    from coremat.tasks.catalogue import TaskInfo


def show_list(
    title: str, headings: tuple[str, ...], rows: Iterable[tuple[str, ...]], numeric: tuple[str, ...] = ()
) -> None:
    """Texts that fold, and numbers under the headings in `numeric`; the first column says what each row is of."""
    from coremat.results.tables.eval import Column, Table

    columns = tuple(Column(heading, numeric=heading in numeric) for heading in headings)
    console.show(Table(title, columns, tuple(rows), (), (), section=None, label_count=1))


def models() -> None:
    """Models that have a name; any folder or hub id of a supported family works too."""
    from coremat.models.known import KNOWN_MODELS

    headings = ("name", "checkpoint", "parameters", "image tokens", "methods", "here")
    rows = []
    for known in KNOWN_MODELS.values():
        here = "yes" if known.is_here else ""
        rows.append((known.name, known.origin, f"{known.parameters:,}", known.image_tokens, known.methods, here))
    show_list("Models", headings, rows, numeric=("parameters",))
    console.log("here: weights in packages or in the local cache of Hugging Face; bench --weights random needs none")


def tasks() -> None:
    """Tasks and groups by name; any other generate_until task of lmms-eval works too, by its name there."""
    from coremat.tasks.catalogue import FOREIGN, GROUPS, TASKS

    headings = (
        "name",
        "what it is",
        "lmms-eval's task, split, questions",
        "prompt, metric",
        "paper's column, caveat",
    )
    show_list("Tasks", headings, [_task_row(task) for task in TASKS.values()])
    show_list("Groups", ("name", "tasks"), [(name, ", ".join(members)) for name, members in GROUPS.items()])
    console.log(f"{FOREIGN}NAME is lmms-eval's own task where both have one of that name, with lmms-eval's own prompt")


def _task_row(task: "TaskInfo") -> tuple[str, ...]:
    data = f", {'/'.join(task.data.splits)}" if task.data else ""
    asked = f"{', '.join(task.tasks)}{data}, {task.questions:,}"
    graded = "; graded by a judge" if task.judge else ""
    main = next((score for score in task.scores if score.column), task.scores[0])
    scored = f"{main.metric}{graded}"
    paper = ", ".join(task.columns.values())
    how = f"{task.prompt}; {scored}" if task.prompt else scored
    return task.name, task.summary, asked, how, f"{paper}: {task.caveat}" if task.caveat else paper
