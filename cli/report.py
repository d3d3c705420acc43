"""`--report`: a table in the summary of a CI job, where there is one, and on standard output otherwise."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from coremat.checks import one_of
from coremat.cli import console
from coremat.errors import OutputError

if TYPE_CHECKING:
    from coremat.results.tables.eval import Table

FORMS = ("markdown",)
SUMMARY = "GITHUB_STEP_SUMMARY"  # names the file that GitHub shows on the page of a job


def checked(form: str | None) -> str | None:
    """The form as it was given. ConfigError for one that there is not, before anything is run for it."""
    if form is not None:
        one_of("--report", form, FORMS)
    return form


Report = Annotated[
    str | None,
    typer.Option("--report", callback=checked, help="markdown: add the table to the summary of a CI job, or print it."),
]


def show_table(table: "Table", report: str | None = None) -> None:
    """A result on standard output, for a reader there or as the report that was asked for."""
    if report is None or os.environ.get(SUMMARY):
        console.show(table)
    if report is not None:
        append_report(table, report)


def append_report(table: "Table", form: str) -> None:
    """Add the table to the job's summary; print it where there is none. OutputError if it cannot be written."""
    from coremat.results.tables.eval import render

    text = render(table, checked(form) or "")
    path = os.environ.get(SUMMARY)
    if not path:
        print(text)
        return
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        raise OutputError(f"cannot write the summary {path}: {error.strerror}") from error
