"""Plots: what is drawn, read back from the figure, and what cannot be drawn."""

import pandas
import pytest
from matplotlib.figure import Figure

from coremat.errors import DataError, OutputError
from coremat.results.plots import eval as plots
from coremat.results.plots.eval import plot_sweep, plot_training_curve

SWEEP = pandas.DataFrame(
    [
        {"method": method, "kept": kept, "score": 90 - number - 100 / kept, "stderr": 0.5}
        for number, method in enumerate(("core tokens", "random tokens"))
        for kept in (36, 9, 144)
    ]
)
LABELS = {"title": "Accuracy over tokens", "x_label": "image tokens kept", "y_label": "answers right (%)"}
LOG = [
    *({"stage": "tower", "step": step, "naming": 5 / step, "named": step / 100} for step in (10, 20, 30)),
    *({"stage": "whole", "step": step, "naming": 1.0, "answer": 2 / step, "right": step / 50} for step in (10, 20)),
]
KEYS = {"losses": {"answer": "answers", "naming": "naming"}, "shares": {"right": "answers"}, "title": "Training"}


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that were saved."""
    saved: list[Figure] = []
    original = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: saved.append(figure) or original(figure, path))
    return saved


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def is_png(path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_sweep_draws_every_line_in_order(tmp_path, figures):
    path = plot_sweep(SWEEP, tmp_path / "a.png", x="kept", y="score", by="method", error="stderr", anchor=95, **LABELS)
    assert is_png(path)
    (axes,) = figures[0].axes
    lines = [container.lines[0] for container in axes.containers]
    assert [list(line.get_xdata()) for line in lines] == [[9, 36, 144]] * 2
    assert list(lines[1].get_ydata()) == pytest.approx([89 - 100 / 9, 89 - 100 / 36, 89 - 100 / 144])
    assert legend(figures[0]) == ["core tokens", "random tokens", "dense"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("image tokens kept", "answers right (%)")
    assert axes.get_title(loc="left") == "Accuracy over tokens"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["9", "36", "144"]


def test_panels_draw_each_line_once_and_the_anchors_everywhere(tmp_path, figures):
    frame = pandas.concat(
        [
            SWEEP.assign(place=lambda rows: rows["method"].map(lambda name: name.partition(" ")[0])),
            SWEEP.assign(method="chance", place=""),
        ]
    )
    options = {"by": "method", "panel": "place", "error": "stderr", "anchor": 95, "everywhere": ("chance",), **LABELS}
    assert is_png(plots.plot_panels(frame, tmp_path / "a.png", x="kept", y="score", **options))
    shown = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figures[0].axes]
    assert shown == [["core tokens", "chance", "dense"], ["random tokens", "chance", "dense"]]
    assert [axes.get_title(loc="left") for axes in figures[0].axes] == ["core", "random"]
    lines = [axes.containers[0].lines[0] for axes in figures[0].axes]
    assert [list(line.get_xdata()) for line in lines] == [[9, 36, 144]] * 2
    assert list(lines[1].get_ydata()) == pytest.approx([89 - 100 / 9, 89 - 100 / 36, 89 - 100 / 144])


def test_error_bars_are_the_standard_errors(tmp_path, figures):
    frame = SWEEP.assign(stderr=[0.5, None, 0.25] * 2)
    plot_sweep(frame, tmp_path / "a.png", x="kept", y="score", by="method", error="stderr", **LABELS)
    bars = figures[0].axes[0].containers[0].lines[2][0].get_segments()
    assert [bar[1][1] - bar[0][1] for bar in bars] == pytest.approx([0.0, 1.0, 0.5])


def test_anchor_for_each_line_has_its_colour(tmp_path, figures):
    anchor = {"random tokens": 80.0, "elsewhere": 70.0}
    plot_sweep(SWEEP, tmp_path / "a.png", x="kept", y="score", by="method", anchor=anchor, **LABELS)
    (axes,) = figures[0].axes
    dashed = [line for line in axes.lines if line.get_label().startswith("dense")]
    assert [line.get_color() for line in dashed] == [plots.COLORS[1], plots.INK]
    assert legend(figures[0])[2:] == ["dense, random tokens", "dense, elsewhere"]


def test_one_line_needs_no_legend(tmp_path, figures):
    plot_sweep(SWEEP[:3], tmp_path / "a.png", x="kept", y="score", **LABELS)
    assert not figures[0].legends


def test_legend_stands_outside_the_data(tmp_path, figures):
    plot_sweep(SWEEP, tmp_path / "a.png", x="kept", y="score", by="method", **LABELS)
    figure = figures[0]
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().x0 >= figure.axes[0].get_window_extent().x1


def test_more_lines_than_colours_differ_in_their_markers(tmp_path, figures):
    frame = pandas.DataFrame([{"m": n, "x": x, "y": n} for n in range(20) for x in (1, 2)])
    plot_sweep(frame, tmp_path / "a.png", x="x", y="y", by="m", **LABELS)
    lines = [container.lines[0] for container in figures[0].axes[0].containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 20


def test_points_without_a_number_are_left_out(tmp_path, figures):
    frame = SWEEP[:3].assign(score=[80.0, None, 90.0])
    plot_sweep(frame, tmp_path / "a.png", x="kept", y="score", **LABELS)
    assert list(figures[0].axes[0].containers[0].lines[0].get_xdata()) == [36, 144]


def test_same_data_same_file(tmp_path):
    files = [plot_sweep(SWEEP, tmp_path / name, x="kept", y="score", by="method", **LABELS) for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_sweep_that_cannot_be_drawn(tmp_path):
    with pytest.raises(DataError, match="no column speed, ms among method, kept, score, stderr"):
        plot_sweep(SWEEP, tmp_path / "a.png", x="kept", y="speed", error="ms", **LABELS)
    with pytest.raises(DataError, match="no row has both kept and score"):
        plot_sweep(SWEEP.assign(score=None), tmp_path / "a.png", x="kept", y="score", **LABELS)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"a\.png"):
        plot_sweep(SWEEP, tmp_path / "file" / "a.png", x="kept", y="score", **LABELS)


def drawn(figure: Figure, panel: int) -> dict[str, list[list[float]]]:
    """The smoothed lines of a panel by colour: their x and y."""
    lines = [line for line in figure.axes[panel].lines if line.get_linewidth() > 1]
    return {
        color: [[*line.get_xdata(), *line.get_ydata()] for line in lines if line.get_color() == color]
        for color in dict.fromkeys(line.get_color() for line in lines)
    }


@pytest.mark.parametrize(
    ("settings", "ticks"), [([9, 36, 144], ["9", "36", "144"]), ([9, 10, 36, 144], None), (list(range(13)), None)]
)
def test_settings_have_ticks_where_these_can_be_read(tmp_path, figures, settings, ticks):
    frame = pandas.DataFrame({"method": "a", "kept": settings, "score": 1.0})
    plot_sweep(frame, tmp_path / "t.png", x="kept", y="score", by="method", **LABELS)
    found = [text.get_text() for text in figures[0].axes[0].get_xticklabels()]
    assert (found == ticks) == (ticks is not None)


def test_training_counts_steps_through_the_stages(tmp_path, figures):
    assert is_png(plot_training_curve(LOG, tmp_path / "t.png", smooth=1, **KEYS))
    above, below = drawn(figures[0], 0), drawn(figures[0], 1)
    assert above[plots.COLORS[0]] == [[40, 50, pytest.approx(0.2), pytest.approx(0.1)]]
    assert [line[:3] for line in above[plots.COLORS[1]]] == [[10, 20, 30], [40, 50, 1.0]]
    assert below[plots.COLORS[0]] == [[40, 50, pytest.approx(20), pytest.approx(40)]]
    panel = figures[0].axes[1]
    assert [text.get_text() for text in panel.texts] == ["tower", "whole"]
    assert [line.get_xdata()[0] for line in panel.lines if line.get_linestyle() == ":"] == [40]


def test_training_is_smoothed(tmp_path, figures):
    rows = [{"step": step, "loss": value} for step, value in enumerate((1.0, 4.0, 1.0, 4.0))]
    plot_training_curve(rows, tmp_path / "t.png", title="T", losses={"loss": "loss"}, shares={}, smooth=3)
    assert drawn(figures[0], 0)[plots.COLORS[0]][0][4:] == [2.5, 2.0, 3.0, 2.5]


def test_what_few_rows_have_is_in_a_panel_of_its_own_and_not_smoothed(tmp_path, figures):
    rows = [
        {"step": step, "right": 0.5, **({"seen": step / 100} if step % 20 == 0 else {})} for step in range(10, 50, 10)
    ]
    keys = {"losses": {}, "shares": {"right": "tokens"}, "validated": {"seen": "seen", "never": "never"}}
    plot_training_curve(rows, tmp_path / "t.png", title="T", smooth=9, **keys)
    assert len(figures[0].axes) == 3
    assert drawn(figures[0], 2)[plots.COLORS[0]] == [[20, 40, pytest.approx(20), pytest.approx(40)]]
    assert [text.get_text() for text in figures[0].axes[2].get_legend().get_texts()] == ["seen"]


def test_step_done_again_after_a_resume_counts_once(tmp_path, figures):
    rows = [{"step": step, "loss": loss} for step, loss in ((10, 3.0), (20, 9.0), (20, 2.0), (30, 1.0))]
    plot_training_curve(rows, tmp_path / "t.png", title="T", losses={"loss": "loss"}, shares={}, smooth=1)
    assert drawn(figures[0], 0)[plots.COLORS[0]] == [[10, 20, 30, 3.0, 2.0, 1.0]]
    assert not figures[0].axes[1].texts


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no row with a step"),
        ([{"loss": 1}], "no row with a step"),
        ([{"step": 1}], "none of answer, naming, right"),
    ],
)
def test_training_that_cannot_be_drawn(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        plot_training_curve(rows, tmp_path / "t.png", **KEYS)
