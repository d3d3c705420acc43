"""Plots of a bench, as PNG files: speed-up by method and by length of answer, latency by batch size.

They are the paper's Figures 9, 10 and 16, with limits. What was projected is hatched or has open markers, and says so.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from coremat.errors import DataError
from coremat.names import DENSE
from coremat.results.plots.eval import INK, STYLE, look, new_figure, save_figure, set_ticks
from coremat.results.record.bench import BenchRecord
from coremat.results.record.bench_rows import DECODE, END_TO_END, PREFILL, BenchRow, Setup
from coremat.results.tables.bench_costs import longest
from coremat.results.tables.eval import mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {"prefill": PREFILL, "decode step": DECODE}
HATCH = "////"
MANY, LEGEND_COLUMNS = 10, 4  # lines that a legend beside the data can name; columns of the one below it
LIMIT = "limit, all weights on the device"
DASHES = (0, (4, 3))
Lines = Mapping[Setup, pandas.DataFrame]  # of columns x, y and limit


def plot_methods(record: BenchRecord, path: str | os.PathLike[str]) -> Path:
    """Speed-up over dense of each method, prefill beside decoding: bars with p10 to p90, and a tick at each limit.

    Of several batch sizes it is the smallest. DataError if no method stands beside dense.
    """
    from matplotlib import rc_context

    setups = _sparse_setups(record)
    panels = {name: [longest(record, setup, phase) for setup in setups] for name, phase in PANELS.items()}
    if all(row is None or record.speedup(row) is None for rows in panels.values() for row in rows):
        raise DataError("nothing to draw: no method has a prefill or a decode step beside dense's")
    with rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = new_figure(height=1.9 + 0.42 * len(setups))
        for axes, (name, rows) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
            axes.set_title(name, fontsize=10)
            axes.set_xlabel("times as fast as dense")
            for place, row in enumerate(rows):
                _bar(axes, record, row, place)
            axes.axvline(1, color=INK, linewidth=0.8)
            axes.set_xlim(0, 1.9 * axes.dataLim.x1)  # room for the numbers
        axes.set_yticks(range(len(setups)), [_label(record, setup) for setup in setups])
        axes.set_ylim(len(setups) - 0.4, -0.6)
        title = _title(f"Speed-up over dense{_at_batch(record)}", record, setups)
        figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12)
        figure.legend(handles=_bar_legend(setups), loc="outside lower center", ncols=3)
        return save_figure(figure, path)


def _bar(axes: "Axes", record: BenchRecord, row: BenchRow | None, place: int) -> None:
    """The bar of a row, if it has a speed-up, and its numbers behind all that is drawn."""
    speedup = None if row is None else record.speedup(row)
    if row is None or speedup is None:
        return
    color, _ = _look(record, row.setup)
    style: dict[str, Any] = {"facecolor": "white", "hatch": HATCH} if row.projected else {"facecolor": color}
    axes.barh(place, speedup, height=0.56, edgecolor=color, **style)
    ends, text = [speedup], mark(f"{speedup:.2f}", row.projected)
    span = record.speedup_range(row)
    if span is not None:
        ends.append(span[1])
        axes.errorbar(sum(span) / 2, place, xerr=(span[1] - span[0]) / 2, color=INK, linewidth=1, capsize=3)
    if row.limit_speedup is not None:
        ends.append(row.limit_speedup)
        text += f" (limit {row.limit_speedup:.2f})"
        axes.plot([row.limit_speedup] * 2, [place - 0.38, place + 0.38], color=INK, linewidth=2.2)
    axes.annotate(text, (max(ends), place), (6, 0), textcoords="offset points", va="center", fontsize=9)


def _bar_legend(setups: Sequence[Setup]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    tick: dict[str, Any] = {"marker": "|", "markersize": 12, "markeredgewidth": 2.2, "linestyle": ""}
    handles: list[Any] = [Line2D([], [], color=INK, label=LIMIT, **tick)]
    if not all(setup.projected for setup in setups):
        handles.append(Line2D([], [], color=INK, linewidth=1, label="p10 to p90, run by run"))
    if any(setup.projected for setup in setups):
        handles.append(Patch(facecolor="white", edgecolor=INK, hatch=HATCH, label="projected, not measured"))
    return handles


def plot_lengths(record: BenchRecord, path: str | os.PathLike[str]) -> Path:
    """End-to-end speed-up over dense by length of answer: a line for each method, its limit dashed.

    Of several batch sizes it is the smallest. DataError if no method stands beside dense at two lengths.
    """
    lines = {setup: _by_length(record, setup) for setup in _sparse_setups(record)}
    if all(line["y"].count() < 2 for line in lines.values()):
        raise DataError("nothing to draw: no method was run end to end at two lengths beside dense")
    labels = {"xlabel": "new tokens", "ylabel": "times as fast as dense"}
    return _plot_lines(record, lines, path, f"End-to-end speed-up{_at_batch(record)}", labels, dense=1.0)


def _by_length(record: BenchRecord, setup: Setup) -> pandas.DataFrame:
    rows = record.rows_of(setup, END_TO_END)
    return _frame([(row.new_tokens, record.speedup(row), row.limit_speedup) for row in rows])


def _frame(points: Sequence[tuple[int, float | None, float | None]]) -> pandas.DataFrame:
    return pandas.DataFrame(points, columns=["x", "y", "limit"], dtype=float)


def plot_batches(record: BenchRecord, path: str | os.PathLike[str]) -> Path:
    """Latency of a token by batch size: a line for each method, dense among them.

    DataError if no method was decoded at two batch sizes.
    """
    points: dict[Setup, list[tuple[int, float, None]]] = {}
    for setup in record.setups():
        row = longest(record, setup, DECODE)
        if row is not None:
            points.setdefault(_of_any_batch(setup), []).append((row.batch_size, row.median_ms, None))
    lines = {setup: _frame(sorted(line)) for setup, line in points.items()}
    if all(line["y"].count() < 2 for line in lines.values()):
        raise DataError("nothing to draw: no method was decoded at two batch sizes")
    labels = {"xlabel": "batch size", "ylabel": "ms per decode step"}
    return _plot_lines(record, lines, path, "Latency of a token", labels)


def _plot_lines(
    record: BenchRecord,
    lines: Lines,
    path: str | os.PathLike[str],
    title: str,
    labels: Mapping[str, str],
    dense: float | None = None,
) -> Path:
    """Columns y and limit over x, on a scale of doublings."""
    from matplotlib import rc_context

    with rc_context(dict(STYLE)):
        many = len(lines) > MANY
        figure = new_figure(height=4.2 + many * 0.2 * (len(lines) + 2) / LEGEND_COLUMNS)
        axes = figure.subplots()
        axes.set_xscale("log", base=2)
        for setup, line in lines.items():
            _line(axes, record, setup, line)
        if dense is not None:
            axes.axhline(dense, color=INK, linewidth=1.2, label=DENSE)
        if any(line["limit"].notna().any() for line in lines.values()):
            axes.plot([], [], color=INK, linestyle=DASHES, linewidth=1, label=LIMIT.replace(", ", ",\n"))
        set_ticks(axes, pandas.concat([line["x"] for line in lines.values()]))
        axes.minorticks_off()
        axes.set(title=_title(title, record, list(lines)), ylim=(0, None), **labels)
        below: dict[str, Any] = {"loc": "outside lower center", "ncols": LEGEND_COLUMNS, "fontsize": 8}
        figure.legend(**(below if many else {"loc": "outside right center"}))
        return save_figure(figure, path)


def _line(axes: "Axes", record: BenchRecord, setup: Setup, line: pandas.DataFrame) -> None:
    color, marker = _look(record, setup)
    face = "white" if setup.projected else color
    label = _label(record, setup) + (" (projected)" if setup.projected else "")
    axes.plot(line["x"], line["limit"], color=color, linestyle=DASHES, linewidth=1)
    axes.plot(line["x"], line["y"], color=color, marker=marker, markerfacecolor=face, linewidth=1.6, label=label)


def _batch_sizes(record: BenchRecord) -> list[int]:
    return sorted({row.batch_size for row in record.rows})


def _at_batch(record: BenchRecord) -> str:
    """Which batch size is drawn, where there are several."""
    sizes = _batch_sizes(record)
    return f" at batch {sizes[0]}" if len(sizes) > 1 else ""


def _sparse_setups(record: BenchRecord) -> list[Setup]:
    """All but dense, at the smallest batch size."""
    smallest = _batch_sizes(record)[:1]
    return [setup for setup in record.setups() if setup.method != DENSE and setup.batch_size in smallest]


def _look(record: BenchRecord, setup: Setup) -> tuple[str, str]:
    """In every plot a method has its colour, and each of its decoders its marker."""
    methods = list(dict.fromkeys(one.method for one in record.setups()))
    setups = list(dict.fromkeys(map(_of_any_batch, record.setups())))
    return look(methods.index(setup.method))[0], look(setups.index(_of_any_batch(setup)))[1]


def _of_any_batch(setup: Setup) -> Setup:
    return setup._replace(batch_size=1)


def _label(record: BenchRecord, setup: Setup) -> str:
    """The method, and what else tells it from other lines."""
    setups = record.setups()
    others = {one.decoder for one in setups if (one.method == DENSE) == (setup.method == DENSE)}
    decoder = f"\n{setup.decoder}" if len(others) > 1 else ""
    layers = f", {setup.layers} layers" if len({one.layers for one in setups}) > 1 else ""
    return f"{setup.method}{decoder}{layers}"


def _title(what: str, record: BenchRecord, setups: Sequence[Setup]) -> str:
    where = ", ".join(filter(None, (record.model, record.device)))
    projected = " (projected)" if all(setup.projected for setup in setups) else ""
    return f"{what}: {where}{projected}"


PLOTS: Mapping[str, Callable[[BenchRecord, Path], Path]] = {
    "methods.png": plot_methods,
    "lengths.png": plot_lengths,
    "batches.png": plot_batches,
}


def write_bench_plots(record: BenchRecord, directory: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Draw, into the folder of a record, the plots that it has data for; return their paths."""
    paths = []
    for name, draw in PLOTS.items():
        with suppress(DataError):  # nothing of that kind was run
            paths.append(draw(record, Path(directory) / name))
    return tuple(paths)
