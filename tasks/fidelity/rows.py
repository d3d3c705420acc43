"""From the journalled lines of a run to the rows of its record: means over tokens, errors over questions."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from coremat.results.record.fidelity import FidelityRow
from coremat.results.statistics import clustered_mean, standard_error
from coremat.tasks.run.costs import COSTS
from coremat.tasks.run.lines import Line

PERCENT = 100
SCALES = {"kl": 1, "agreement": PERCENT, "nll": 1}  # of what a line has a value of for each position


def make_row(method: str, source: str, lines: Sequence[Line]) -> FidelityRow:
    """Of the lines of one method on one source; with none of them all is unknown but that."""
    if not lines:
        return FidelityRow(method=method, source=source, questions=0, tokens=0)
    found: dict[str, float | None] = {}
    for name, scale in SCALES.items():
        mean, error = clustered_mean([sum(line[name]) for line in lines], [_length(line) for line in lines])
        found |= {name: scale * mean, f"{name}_se": _scaled(error, scale)}
    found |= _with_error("first_difference", [float(_first(line)) for line in lines])
    found |= _with_error("same_share", [float(line["first_difference"] is None) for line in lines], PERCENT)
    costs = {name: fmean(line[name] for line in lines) for name in ("prompt_tokens", *COSTS)}
    tokens = sum(map(_length, lines))
    positions = by_position(lines)
    return FidelityRow(
        method=method,
        source=source,
        questions=len(lines),
        tokens=tokens,
        by_position=positions,
        **found,
        **costs,
    )


def _length(line: Line) -> int:
    return len(line["kl"])


def _first(line: Line) -> int:
    """Where decoding freely leaves the dense answer; its length where it does not."""
    first = line["first_difference"]
    return _length(line) if first is None else first


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * value


def _with_error(name: str, values: Sequence[float], scale: float = 1) -> dict[str, float | None]:
    return {name: scale * fmean(values), f"{name}_se": _scaled(standard_error(values), scale)}


def by_position(lines: Sequence[Line]) -> dict[str, list[Any]]:
    """See `FidelityRow`. A question counts at the positions that its answer has."""
    positions = [_at(lines, position) for position in range(max(map(_length, lines)))]
    return {name: [one[name] for one in positions] for name in positions[0]}


def _at(lines: Sequence[Line], position: int) -> dict[str, Any]:
    there = [line for line in lines if _length(line) > position]
    found: dict[str, Any] = {"questions": len(there)}
    for name, scale in SCALES.items():
        found |= _with_error(name, [line[name][position] for line in there], scale)
    alike = [float(line["first_difference"] is None or line["first_difference"] > position) for line in there]
    return found | _with_error("same", alike, PERCENT)
