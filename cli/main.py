"""`coremat`: the commands, and the one place where an error becomes a red line and an exit code."""

import sys
from typing import Annotated

import typer

from coremat import __version__
from coremat.cli import console
from coremat.cli.bench import bench
from coremat.cli.calibrate import calibrate
from coremat.cli.check import check
from coremat.cli.check_method import check_method
from coremat.cli.data import data
from coremat.cli.eval import evaluate
from coremat.cli.fidelity import fidelity
from coremat.cli.list import models, tasks
from coremat.cli.methods import methods
from coremat.cli.run import run
from coremat.cli.table import table
from coremat.errors import CorematError

app = typer.Typer(
    help="Make vision-language models faster with core tokens and core neurons, and see what it costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("eval")(evaluate)
app.command("bench")(bench)
app.command("fidelity")(fidelity)
app.command("calibrate")(calibrate)
app.command("check")(check)
app.command("check-method")(check_method)
app.command("run")(run)
app.command("table")(table)

listing = typer.Typer(help="What there is: models, tasks, methods.", no_args_is_help=True)
listing.command("models")(models)
listing.command("tasks")(tasks)
listing.command("methods")(methods)
app.add_typer(listing, name="list")
app.add_typer(data, name="data")


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. What a user can mend ends in one sentence and exit code 2."""
    console.take_any_text()
    try:
        app()
    except CorematError as error:
        console.fail(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
