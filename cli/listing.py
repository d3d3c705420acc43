"""`coremat list models|tasks|methods`."""

from collections.abc import Iterable

from coremat.cli import console


def _show(title: str, headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(*headings, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.show(table)


def models() -> None:
    """Models that have a name; any folder or hub id of a supported family works too."""
    from coremat.loading import KNOWN_MODELS

    rows = [(m.name, m.checkpoint or "in the package", m.summary) for m in KNOWN_MODELS.values()]
    _show("Models", ("name", "checkpoint", "what it is"), rows)


def tasks() -> None:
    """Bundled tasks; any generate_until task of lmms-eval works too, by its name there."""
    from coremat.tasks import TASKS

    _show("Tasks", ("name", "what it is"), [(task.name, task.summary) for task in TASKS.values()])


def methods() -> None:
    """Methods, and the options that a method takes (name:option=value)."""
    from coremat.config import SparsityConfig
    from coremat.methods import METHODS

    _show("Methods", ("name", "what it does"), [(m.name, m.summary) for m in METHODS.values()])
    options = ", ".join(f"{name}={value}" for name, value in SparsityConfig().as_dict().items())
    console.say(f"options and defaults: {options}")
