"""Plots of a fidelity run, as PNG files: KL over what a method saves, and over the positions of the answers."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from coremat.errors import DataError
from coremat.names import DENSE
from coremat.results.plots.eval import DASHES, INK, STYLE, look, new_figure, save_figure
from coremat.results.record.fidelity import FidelityRecord, FidelityRow
from coremat.results.record.methods import methods_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KL_FILE, POSITIONS_FILE = "kl.png", "positions.png"
KL_LABEL = "KL(dense || method), nats per token"
X_LABELS = {"ffn_read_mib": "FFN MiB read per token", "image_tokens_kept": "image tokens kept"}
WIDTH, HEIGHT = 4.6, 3.6  # inches, of one panel
LEGEND_COLUMNS = 3


class Point(NamedTuple):
    x: float
    kl: float
    error: float


Lines = Mapping[str, Sequence[Point]]  # by what the legend says


class Panel(NamedTuple):
    """label: what the x axis says. dense: where dense is on it, with the axis from 0 to there; None: no such place."""

    source: str
    label: str
    lines: Lines
    dense: float | None = None


def plot_costs(record: FidelityRecord, path: str | os.PathLike[str]) -> Path:
    """KL over FFN bytes read per token, and over image tokens kept: a panel for each that any method makes fewer, and a
    line for each method, its settings along it; return the path of the PNG.

    A method without a KL above 0 has no place on the logarithmic axis. DataError if nothing can be drawn.
    """
    panels = [
        Panel(source, label, lines, _dense(record, source, cost))
        for source in _sources(record)
        for cost, label in X_LABELS.items()
        if (lines := _over_cost(record, source, cost))
    ]
    return _plot(panels, path, f"{record.model}: KL over what is saved", {"linewidth": 1.4, "markersize": 6})


def plot_positions(record: FidelityRecord, path: str | os.PathLike[str]) -> Path:
    """KL at each position of the dense answers, a line for each method as typed; return the path of the PNG."""
    panels = [
        Panel(source, "position in the dense answer", lines)
        for source in _sources(record)
        if (lines := {row.method: points for row in _rows(record, source) if (points := _over_positions(row))})
    ]
    return _plot(panels, path, f"{record.model}: fidelity by position", {"linewidth": 1.2, "markersize": 3})


def write_plots(record: FidelityRecord, directory: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Those of both plots that have anything to show, in the folder of the record; return their paths."""
    drawn = []
    plots: dict[str, Callable[..., Path]] = {KL_FILE: plot_costs, POSITIONS_FILE: plot_positions}
    for name, plot in plots.items():
        try:
            drawn.append(plot(record, Path(directory) / name))
        except DataError:
            continue
    return tuple(drawn)


def _sources(record: FidelityRecord) -> list[str]:
    return list(dict.fromkeys(row.source for row in record.rows))


def _rows(record: FidelityRecord, source: str) -> list[FidelityRow]:
    return [row for row in record.rows if row.source == source]


def _over_cost(record: FidelityRecord, source: str, cost: str) -> Lines:
    """The methods that make this cost less than dense's, by the names that they have without their options."""
    described, lines = methods_of(record.config), dict[str, list[Point]]()
    dense = _dense(record, source, cost)
    for row in _rows(record, source):
        value = getattr(row, cost)
        if value is not None and row.kl and (dense is None or value < dense):
            lines.setdefault(_label(described, row), []).append(Point(value, row.kl, row.kl_se or 0.0))
    return {name: sorted(points) for name, points in lines.items()}


def _dense(record: FidelityRecord, source: str, cost: str) -> float | None:
    described = methods_of(record.config)
    rows = (row for row in _rows(record, source) if _label(described, row) == DENSE)
    return next((getattr(row, cost) for row in rows), None)


def _label(described: Mapping[str, Any], row: FidelityRow) -> str:
    return str(described.get(row.method, {}).get("name") or row.method)


def _over_positions(row: FidelityRow) -> list[Point]:
    lists = (row.by_position.get(name, []) for name in ("kl", "kl_se"))
    return [Point(place, kl, error or 0.0) for place, (kl, error) in enumerate(zip(*lists, strict=True)) if kl]


def _plot(panels: Sequence[Panel], path: str | os.PathLike[str], title: str, style: Mapping[str, Any]) -> Path:
    if not panels:
        raise DataError("nothing to draw: no method differs from dense")
    from matplotlib import rc_context

    looks = {name: look(number) for number, name in enumerate(_names(panels))}
    several = len({panel.source for panel in panels}) > 1
    columns = min(2, len(panels))
    grid = -(-len(panels) // columns)
    with rc_context(dict(STYLE)):
        figure = new_figure(height=0.7 + HEIGHT * grid + 0.2 * len(looks) / LEGEND_COLUMNS, width=0.4 + WIDTH * columns)
        places = list(figure.subplots(grid, columns, squeeze=False).flat)
        for axes, panel in zip(places, panels, strict=False):
            _draw(axes, panel, looks, style)
            if several:
                axes.set_title(panel.source, fontsize=10)
        for axes in places[len(panels) :]:
            axes.set_visible(False)
        figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12)
        handles = {label: handle for axes in figure.axes for handle, label in _legend(axes)}
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(LEGEND_COLUMNS, len(handles)))
        return save_figure(figure, path)


def _names(panels: Sequence[Panel]) -> Iterable[str]:
    return dict.fromkeys(name for panel in panels for name in panel.lines)


def _draw(axes: "Axes", panel: Panel, looks: Mapping[str, tuple[str, str]], style: Mapping[str, Any]) -> None:
    for name, points in panel.lines.items():
        color, marker = looks[name]
        x, kl, error = zip(*points, strict=True)
        low = [min(one, 0.999 * value) for one, value in zip(error, kl, strict=True)]  # a log axis has no place for 0
        axes.errorbar(x, kl, (low, error), color=color, marker=marker, elinewidth=0.8, capsize=2, label=name, **style)
    axes.set(xlabel=panel.label, ylabel=KL_LABEL, yscale="log")
    if panel.dense is not None:
        axes.axvline(panel.dense, color=INK, linestyle=DASHES, linewidth=1.2, label=DENSE)
        axes.set_xlim(0, 1.05 * panel.dense)


def _legend(axes: "Axes") -> Iterable[tuple[Any, str]]:
    return zip(*axes.get_legend_handles_labels(), strict=True)
