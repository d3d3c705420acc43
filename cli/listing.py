"""`coremat list models|tasks|methods`."""

from collections.abc import Iterable
from typing import Annotated

import typer

from coremat.cli import console


def _show(title: str, headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
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
    _show("Models", headings, rows)
    console.say("here: weights in the package or in the local cache of Hugging Face; bench --weights random needs none")


def tasks() -> None:
    """Bundled tasks; any generate_until task of lmms-eval works too, by its name there."""
    from coremat.tasks import TASKS

    _show("Tasks", ("name", "what it is"), [(task.name, task.summary) for task in TASKS.values()])


def methods(
    model: Annotated[str | None, typer.Option(help="Say for this model whether it supports each method.")] = None,
) -> None:
    """Methods, and the options that a method takes (name:option=value)."""
    from coremat.config import SparsityConfig
    from coremat.methods import METHODS

    support = {} if model is None else _support(model)
    headings = ("name", "slot", "what it does") if model is None else ("name", "slot", f"with {model}")
    rows = [(m.name, m.config.slot, support.get(m.name, m.summary)) for m in METHODS.values()]
    _show("Methods", headings, rows)
    console.say("what prunes tokens alone combines with core neurons: fastv+core-neurons")
    options = ", ".join(f"{name}={value}" for name, value in SparsityConfig().as_dict().items())
    console.say(f"options and defaults: {options}")


def _support(model: str) -> dict[str, str]:
    """For each method "yes", or why not."""
    from coremat.profile.shipped_config import config_of
    from coremat.profile.support import method_support

    return {name: reason or "yes" for name, reason in method_support(config_of(model)).items()}
