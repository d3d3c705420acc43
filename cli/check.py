"""`coremat check`: has a run lost accuracy or speed since its baseline? For CI: the exit code says it."""

from pathlib import Path
from typing import Annotated

import typer

from coremat.checks import one_of
from coremat.cli import console

FORMATS = ("text", "markdown", "github", "junit")


def check(
    record: Annotated[Path, typer.Argument(help="Folder or record.json of an eval, bench or fidelity.")],
    baseline: Annotated[Path, typer.Option(help="The same of an earlier run of the same model.")],
    max_drop: Annotated[float, typer.Option(help="Points that a score may lose.")] = 1.0,
    min_speedup: Annotated[
        float | None,
        typer.Option(help="Over dense in the same record; for a bench in place of the baseline's."),
    ] = None,
    form: Annotated[str, typer.Option("--format", help=", ".join(FORMATS) + ".")] = "text",
) -> None:
    """Compare a record with its baseline; exit with 1 on a regression.

    A score regressed if it fell by more than --max-drop and by more than
    chance: the 95 % interval of the drop question by question, where both
    folders have samples.jsonl; otherwise 1.96 standard errors of two
    independent runs, and if both were asked the same questions, --max-drop
    alone. Where a score is as lmms-eval gives it, a point is 1 % of the
    baseline's. What the record lacks and the baseline has regressed too.

    With --min-speedup X, methods that prune tokens also have to be at the
    first new token X times as fast as dense is on that task in the same
    record, and those that prune neurons in decoding.

    A bench regressed if its end-to-end speed-up over dense, at the longest
    answer, is below --min-speedup; without that, if it is more than 10 %
    below the baseline's and the ranges of single runs do not overlap.

    A fidelity regressed if its KL rose by more than 10 % of the baseline's,
    0.001 nats and chance, or its agreement fell as a score does.
    """
    one_of("--format", form, FORMATS)
    from coremat.results.check.compare import compare
    from coremat.results.check.forms import render, to_table
    from coremat.results.check.rows import Limits

    comparison = compare(record, baseline, Limits(max_drop, min_speedup))
    if form == "text":
        console.show(to_table(comparison))
        print(comparison.summary)
    else:
        print(render(comparison, form), end="")
    if comparison.regressions:
        raise typer.Exit(1)
