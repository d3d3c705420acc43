"""How coremat speaks: results on standard output, everything else on standard error."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from coremat.progress import Step
    from coremat.results.tables.eval import Table

NARROWEST = 120  # columns that a table gets where there is no terminal to ask
ROOM_FOR_BAR = 72  # columns below which what is being done folds, so that no number beside it is cut


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    # The stream itself, not a look-up at each draw: while lmms-eval runs, sys.stderr is its log file.
    stream = sys.stderr if stderr else sys.stdout
    there = Console(file=stream)
    return there if there.is_terminal else Console(file=stream, width=max(NARROWEST, there.width))


def take_any_text() -> None:
    """A stream whose encoding lacks a character gets it spelled otherwise: no run ends in an error over that."""
    from coremat.results.tables.plain_text import ERRORS

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def show(table: "Table") -> None:
    """A result, as wide as the terminal. Of a terminal that is too narrow for a single number the rest is folded."""
    from coremat.results.tables.terminal import Fitted

    _console().print(Fitted(table), crop=False)


def log(text: str) -> None:
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

    def log(self, text: str) -> None:
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
    from rich.table import Column

    there = _console(stderr=True)
    whole = Column(no_wrap=True)
    columns = (
        TextColumn("{task.description:<34}", table_column=Column(no_wrap=there.width >= ROOM_FOR_BAR)),
        BarColumn(),
        MofNCompleteColumn(table_column=whole),
        TimeElapsedColumn(table_column=whole.copy()),
        TextColumn("left"),
        TimeRemainingColumn(table_column=whole.copy()),
    )
    with Progress(*columns, console=there, disable=not shown) as bar:
        yield Bar(bar, begin)
