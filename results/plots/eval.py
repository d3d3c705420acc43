"""Plots of records, as PNG files: a score over a setting, and the course of a training.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; markers differ as well, for print.
matplotlib is imported inside the functions, and its global state (pyplot) is not used.
"""

import io
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from coremat.errors import DataError
from coremat.results.record.eval import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31", "#7B3294")
NARROWEST = 5.6  # inches, for a title
LONG = 26  # letters of a label, of which two do not go side by side
CLOSEST = 0.05  # share of the axis between two ticks
MARKERS = "osD^vPXh"
INK, GREY, FAINT = "#333333", "#8A8A8A", "#D9D9D9"
DASHES = (0, (5, 3))
STYLE: Mapping[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 12,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.dpi": 160,
}


def plot_sweep(
    frame: pandas.DataFrame,
    path: str | os.PathLike[str],
    *,
    x: str,
    y: str,
    by: str | None = None,
    error: str | None = None,
    title: str,
    x_label: str,
    y_label: str,
    anchor: float | Mapping[Hashable, float] | None = None,
    anchor_label: str = "dense",
) -> Path:
    """Draw column `y` over column `x`, a line for each value of `by`; return the path of the PNG.

    error: the column of the error bars' half length, in the unit of `y`. anchor: a value to compare with,
    dashed, for all lines or for each by its name. Labels carry the units; `title` says what is seen.
    Points without a number are left out. DataError if a column is not there or nothing can be drawn.
    """
    from matplotlib import rc_context

    points = _points(frame, [x, y], [name for name in (by, error) if name])
    lines = {"": points} if by is None else dict(tuple(points.groupby(by, sort=False)))
    with rc_context(dict(STYLE)):
        figure = new_figure(height=4.2)
        axes = figure.subplots()
        for number, (name, line) in enumerate(lines.items()):
            _line(axes, line.sort_values(x), x, y, error, *look(number), str(name))
        _anchors(axes, anchor, anchor_label, list(lines))
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        set_ticks(axes, points[x])
        if by is not None or anchor is not None:
            figure.legend(*_lines_first(axes), loc="outside right center", title=by, alignment="left")
        return save_figure(figure, path)


def plot_panels(
    frame: pandas.DataFrame,
    path: str | os.PathLike[str],
    *,
    x: str,
    y: str,
    by: str,
    panel: str,
    error: str,
    title: str,
    x_label: str,
    y_label: str,
    anchor: float | None,
    everywhere: Sequence[str] = (),
) -> Path:
    """Draw column `y` over column `x`, a line for each value of `by`, in a panel for each value of `panel`; return the
    path of the PNG.

    For more lines than one picture holds. everywhere: lines that are drawn in all panels, in grey. The rest as in
    `plot_sweep`.
    """
    from matplotlib import rc_context

    points = _points(frame, [x, y], [by, panel, error])
    names = list(dict.fromkeys(points[panel][~points[by].isin(everywhere)]))
    with rc_context(dict(STYLE)):
        figure = new_figure(height=5.6, width=max(NARROWEST, 3.7 * len(names)))
        panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            own = points[(points[panel] == name) & ~points[by].isin(everywhere)]
            for number, (label, line) in enumerate(own.groupby(by, sort=False)):
                _line(axes, line.sort_values(x), x, y, error, *look(number), str(label))
            for number, label in enumerate(everywhere):
                line = points[points[by] == label].sort_values(x)
                if not line.empty:
                    _line(axes, line, x, y, error, GREY, MARKERS[number], label)
            _anchors(axes, anchor, "dense", [])
            axes.set_title(name, fontsize=10)
            axes.set_xlabel(x_label)
            set_ticks(axes, points[x])
            handles, labels = _lines_first(axes)
            columns = 1 if max(map(len, labels)) > LONG else 2
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "fontsize": 8}
            axes.legend(handles, labels, ncols=columns, **below)
        figure.axes[0].set_ylabel(y_label)
        figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12)
        return save_figure(figure, path)


def plot_training_curve(
    rows: Iterable[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    title: str,
    losses: Mapping[str, str],
    shares: Mapping[str, str],
    validated: Mapping[str, str] | None = None,
    smooth: int = 9,
) -> Path:
    """Draw the log of a training: losses above, shares of right answers below; return the path of the PNG.

    rows: mappings with "step", and "stage" where steps begin anew with each stage; a step that a resumed
    run did again counts once, as done last. losses, shares: the legend's name of each key to draw; shares
    are 0 to 1 and shown in per cent. Single steps are faint, under the mean of `smooth` rows. validated: names of
    shares that a few rows have; they are in a panel of their own, as they are.
    DataError if nothing can be drawn.
    """
    from matplotlib import rc_context
    from matplotlib.ticker import LogLocator

    log = _training_log(rows)
    validated = {name: label for name, label in (validated or {}).items() if name in log}
    shown = [name for name in (*losses, *shares) if name in log]
    if not shown:
        raise DataError(f"nothing to draw: none of {', '.join((*losses, *shares))} is in the log")
    with rc_context(dict(STYLE)):
        figure = new_figure(height=8.4 if validated else 5.6)
        panels = figure.subplots(3 if validated else 2, 1, sharex=True)
        above, below, *more = panels
        _courses(above, log, losses, smooth, 1)
        _courses(below, log, shares, smooth, 100)
        above.set(title=title, ylabel="loss (log scale)", yscale="log")
        above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        above.yaxis.set_major_formatter("{x:g}")
        above.yaxis.set_minor_formatter("")
        below.set(ylabel="right (%)", ylim=(0, 102))
        for axes in more:
            _checks(axes, log, validated)
            axes.set(ylabel="validation, right (%)", ylim=(0, 102))
        panels[-1].set(xlabel="step")
        _stages(panels, log)
        return save_figure(figure, path)


def _points(frame: pandas.DataFrame, needed: Sequence[str], more: Sequence[str]) -> pandas.DataFrame:
    """The rows that have a number in every needed column."""
    missing = [name for name in (*needed, *more) if name not in frame]
    if missing:
        raise DataError(f"nothing to draw: no column {', '.join(missing)} among {', '.join(map(str, frame.columns))}")
    points = frame.dropna(subset=list(needed))
    if points.empty:
        raise DataError(f"nothing to draw: no row has both {' and '.join(needed)}")
    return points


def new_figure(height: float, width: float = 7.6) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def look(number: int) -> tuple[str, str]:
    """Colour and marker of the nth line."""
    return COLORS[number % len(COLORS)], MARKERS[(number + number // len(COLORS)) % len(MARKERS)]


def _line(
    axes: "Axes", line: pandas.DataFrame, x: str, y: str, error: str | None, color: str, marker: str, label: str
) -> None:
    bars = None if error is None else line[error].astype(float).fillna(0.0)
    axes.errorbar(
        line[x],
        line[y],
        bars,
        color=color,
        marker=marker,
        markersize=5,
        linewidth=1.6,
        elinewidth=1,
        capsize=2.5,
        label=label or None,
    )


def _anchors(axes: "Axes", anchor: float | Mapping[Hashable, float] | None, label: str, lines: list[Hashable]) -> None:
    if anchor is None:
        return
    if not isinstance(anchor, Mapping):
        axes.axhline(anchor, color=INK, linestyle=DASHES, linewidth=1.2, label=label)
        return
    for name, value in anchor.items():
        color = COLORS[lines.index(name) % len(COLORS)] if name in lines else INK
        axes.axhline(value, color=color, linestyle=DASHES, linewidth=1.2, label=f"{label}, {name}")


def set_ticks(axes: "Axes", values: pandas.Series) -> None:
    """A tick at each setting that was run, where they are few, and far enough apart, to be read."""
    if not pandas.api.types.is_numeric_dtype(values):
        return
    settings = sorted(values.unique())
    places = [log2(value) for value in settings] if axes.get_xscale() == "log" else settings
    gaps = [later - before for before, later in pairwise(places)]
    if len(settings) <= 12 and all(gap > CLOSEST * (places[-1] - places[0]) for gap in gaps):
        axes.set_xticks(settings, [f"{value:g}" for value in settings])


def _training_log(rows: Iterable[Mapping[str, Any]]) -> pandas.DataFrame:
    """The rows by `at`, the step counted through all stages."""
    log = pandas.DataFrame(list(rows))
    if "step" not in log:
        raise DataError("nothing to draw: the training log has no row with a step")
    log["stage"] = log.get("stage", "")
    log = log.drop_duplicates(["stage", "step"], keep="last")
    lengths = log.groupby("stage", sort=False)["step"].max()
    starts = lengths.cumsum() - lengths
    return log.assign(at=log["step"] + log["stage"].map(starts)).sort_values("at")


def _courses(axes: "Axes", log: pandas.DataFrame, names: Mapping[str, str], smooth: int, scale: float) -> None:
    """A line for each name, broken between stages."""
    for number, (name, label) in enumerate(names.items()):
        color = COLORS[number % len(COLORS)]
        stages = log.dropna(subset=[name]).groupby("stage", sort=False) if name in log else ()
        for nth, (_, line) in enumerate(stages):
            values = scale * line[name]
            mean = values.rolling(smooth, min_periods=1, center=True).mean()
            axes.plot(line["at"], values, color=color, alpha=0.25, linewidth=0.7)
            axes.plot(line["at"], mean, color=color, linewidth=1.8, label=None if nth else label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _checks(axes: "Axes", log: pandas.DataFrame, names: Mapping[str, str]) -> None:
    """A line with markers for each name, where it was measured."""
    for number, (name, label) in enumerate(names.items()):
        points = log.dropna(subset=[name])
        color, marker = look(number)
        axes.plot(
            points["at"], 100 * points[name], color=color, marker=marker, markersize=4, linewidth=1.2, label=label
        )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _stages(panels: Iterable["Axes"], log: pandas.DataFrame) -> None:
    """The name of each stage where it begins, and a line between two of them."""
    starts = log.groupby("stage", sort=False)["at"].min()
    for number, (stage, start) in enumerate(starts.items() if len(starts) > 1 else ()):
        for axes in panels:
            if number:
                axes.axvline(start, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(str(stage), (start, 0), xytext=(4, 4), textcoords="offset points", fontsize=9)


def _lines_first(axes: "Axes") -> tuple[list[Any], list[str]]:
    """The legend's entries with the measured lines before the anchors."""
    pairs = list(zip(*axes.get_legend_handles_labels(), strict=True))
    pairs.sort(key=lambda pair: not hasattr(pair[0], "has_yerr"))
    return [handle for handle, _ in pairs], [label for _, label in pairs]


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> Path:
    """The same picture gives the same bytes: no date or version goes into the file."""
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return write_atomic(path, image.getvalue())
