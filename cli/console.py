"""How coremat speaks: results on standard output, everything else on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

    from coremat.progress import Step

NARROWEST = 120  # columns that a table gets where there is no terminal to ask


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    # The stream itself, not a look-up at each draw: while lmms-eval runs, sys.stderr is its log file.
    stream = sys.stderr if stderr else sys.stdout
    there = Console(file=stream)
    return there if there.is_terminal else Console(file=stream, width=max(NARROWEST, there.width))


def show(what: "RenderableType") -> None:
    """A result."""
    _console().print(what)


def say(text: str) -> None:
    """A remark, beside the result."""
    _console(stderr=True).print(text, highlight=False, markup=False)


def fail(text: str) -> None:
    """The one red line of an error."""
    from rich.text import Text

    _console(stderr=True).print(Text(f"error: {text}", style="red"), soft_wrap=True)


class Bar:
    """One bar over a whole run: call it with each step. `say` prints a remark above it."""

    def __init__(self, bar: "Progress", begin: str) -> None:
        self._bar = bar
        self._line = bar.add_task(begin, total=None)

    def __call__(self, step: "Step") -> None:
        self._bar.update(self._line, total=step.total, description=step.description, advance=step.advance)

    def say(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False)


@contextmanager
def progress(begin: str = "loading tasks", shown: bool = True) -> Iterator[Bar]:
    """A bar with the time that is left; of several processes only one shows it."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console(stderr=True), disable=not shown) as bar:
        yield Bar(bar, begin)
