"""`coremat check-method`: does a method of one's own keep every invariant, on tiny models of every family?"""

from collections import Counter
from typing import Annotated

import typer

from coremat.cli import console
from coremat.cli.options import names


def check_method(
    method: Annotated[
        str, typer.Argument(help="As after --methods: a name, package.module:Class, or file.py:Class, which is run.")
    ],
    families: Annotated[str | None, typer.Option(help="Comma-separated model families; every one by default.")] = None,
) -> None:
    """Check a method on tiny models, a line for each invariant; exit with 1 if one fails."""
    from coremat.methods.registry import parse
    from coremat.testing import check_method as findings_of

    asked = None if families is None else names("families", families)
    counts: Counter[bool | None] = Counter()
    for finding in findings_of(parse(method), families=asked):
        counts[finding.ok] += 1
        print(finding, flush=True)
    console.log(_summary(method, counts))
    if counts[False]:
        raise typer.Exit(1)


def _summary(method: str, counts: Counter[bool | None]) -> str:
    checked = counts[True] + counts[False]
    beside = f", {counts[None]} not applicable" if counts[None] else ""
    return f"{method}: {counts[False] or 'none'} of {checked} checks failed{beside}"
