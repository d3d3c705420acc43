"""Plots of a bench: what is drawn, read back from the figure; what was projected looks so; and what cannot be drawn."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_bench import LENGTHS, METHODS, bench
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from coremat.errors import DataError, OutputError
from coremat.results.plots import bench as bench_plots
from coremat.results.plots.bench import plot_batches, plot_lengths, plot_methods, write_bench_plots
from coremat.results.plots.eval import COLORS
from coremat.results.record.bench import BenchRecord

SPARSE = ["core-tokens", "core-neurons", "corematching", "corematching:beta=0.2"]


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that were made; none is saved, which takes longer than all else."""
    made: list[Figure] = []
    monkeypatch.setattr(bench_plots, "save_figure", lambda figure, path: made.append(figure) or Path(path))
    return made


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def shown(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """The named lines."""
    named = [line for line in axes.lines if not line.get_label().startswith("_") and len(line.get_xdata()) > 0]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in named}


def test_bars_are_the_speedups_and_ticks_the_limits(tmp_path, figures):
    plot_methods(bench(), tmp_path / "m.png")
    prefill, decode = figures[0].axes
    assert [bar.get_width() for bar in prefill.patches] == pytest.approx([2, 1, 2, 2])
    assert [bar.get_width() for bar in decode.patches] == pytest.approx([1 / 0.95, 1 / 0.65, 1 / 0.64, 2])
    ticks = [line.get_xdata()[0] for line in decode.lines if line.get_linewidth() > 2]
    assert ticks == [1.06, 1.62, 1.66, 2.16]
    assert [label.get_text() for label in prefill.get_yticklabels()] == SPARSE
    assert [text.get_text() for text in decode.texts][-1] == "2.00 (limit 2.16)"
    assert [to_hex(bar.get_facecolor()).upper() for bar in decode.patches] == list(COLORS[1:5])
    assert legend(figures[0]) == ["limit, all weights on the device", "p10 to p90, run by run"]


def test_a_legend_of_many_lines_is_inside_the_picture(tmp_path, figures, monkeypatch):
    names = [f"core-neurons:beta=0.{number}" for number in range(10, 40)]
    for name in names:
        monkeypatch.setitem(METHODS, name, METHODS["core-neurons"])
    plot_lengths(bench(("dense", *names)), tmp_path / "m.png")
    [figure] = figures
    assert set(names) < set(legend(figure))
    figure.draw_without_rendering()
    low, high = figure.bbox.corners()[[0, 3]]
    box = figure.legends[0].get_window_extent().corners()
    assert (low <= box.min(0)).all()
    assert (box.max(0) <= high).all()


def test_a_decoder_is_named_only_where_methods_differ_by_it(tmp_path, figures):
    dense, own = bench(("dense",), decoders=("eager generate", "in-place cache")), bench(decoders=("in-place cache",))
    rows = (*dense.rows, *(row for row in own.rows if row.method != "dense"))
    plot_lengths(replace(own, rows=rows), tmp_path / "m.png")
    assert legend(figures[0])[: len(SPARSE)] == SPARSE


def test_whiskers_go_from_p10_to_p90(tmp_path, figures):
    record = bench()
    plot_methods(record, tmp_path / "m.png")
    row = next(row for row in record.rows if (row.method, row.phase) == ("corematching", "decode"))
    whiskers = [bar.lines[2][0].get_segments()[0] for bar in figures[0].axes[1].containers if hasattr(bar, "has_xerr")]
    ends = [tuple(segment[:, 0]) for segment in whiskers]
    assert ends[2] == pytest.approx(record.speedup_range(row))
    assert ends[2][0] < record.speedup(row) < ends[2][1]


def test_numbers_stand_clear_of_bars_limits_and_each_other(tmp_path, figures):
    for record in (bench(), bench(decoders=("eager generate", "graph"), projected=True)):
        plot_methods(record, tmp_path / "m.png")
        figure = figures.pop()
        figure.draw_without_rendering()
        for axes in figure.axes:
            texts = [text.get_window_extent() for text in axes.texts]
            drawn = [line.get_window_extent() for line in axes.lines if line.get_linewidth() > 2]
            drawn += [bar.get_window_extent() for bar in axes.patches]
            assert not any(text.overlaps(thing) for text in texts for thing in drawn)
            assert not any(a.overlaps(b) for a in texts for b in texts if a is not b)
            assert max(text.x1 for text in texts) <= axes.get_window_extent().x1
        labels = [axes.xaxis.label.get_window_extent() for axes in figure.axes]
        assert not any(figure.legends[0].get_window_extent().overlaps(label) for label in labels)


def test_projected_bars_are_hatched_and_called_so(tmp_path, figures):
    plot_methods(bench(projected=True), tmp_path / "m.png")
    bars = [bar for axes in figures[0].axes for bar in axes.patches]
    assert all(bar.get_hatch() and to_hex(bar.get_facecolor()) == "#ffffff" for bar in bars)
    assert "projected, not measured" in legend(figures[0])
    assert figures[0].get_suptitle().endswith("(projected)")
    assert all(text.get_text().startswith("~") for axes in figures[0].axes for text in axes.texts)
    plot_methods(bench(), tmp_path / "m.png")
    assert not any(bar.get_hatch() for axes in figures[1].axes for bar in axes.patches)
    assert "projected" not in " ".join([figures[1].get_suptitle(), *legend(figures[1])])


def test_a_method_that_was_not_finished_has_no_bar(tmp_path, figures):
    rows = [row for row in bench().rows if (row.method, row.phase) != ("core-neurons", "decode")]
    plot_methods(replace(bench(), rows=tuple(rows)), tmp_path / "m.png")
    prefill, decode = figures[0].axes
    assert (len(prefill.patches), len(decode.patches)) == (4, 3)


def test_lengths_draw_a_line_and_a_limit_for_each_method(tmp_path, figures):
    record = bench()
    plot_lengths(record, tmp_path / "l.png")
    (axes,) = figures[0].axes
    lines = shown(axes)
    assert list(lines) == [*SPARSE, "dense"]
    x, y = lines["corematching"]
    assert x == list(LENGTHS)
    assert y == pytest.approx([(500 + 10 * (n - 1)) / (300 + 6.4 * (n - 1)) for n in LENGTHS])
    dashed = [line for line in axes.lines if line.is_dashed() and len(line.get_xdata()) > 0]
    rows = record.rows_of(record.setups()[3], "end-to-end")
    assert list(dashed[2].get_ydata()) == [row.limit_speedup for row in rows]
    assert dashed[2].get_color() == COLORS[3]
    assert [text.get_text() for text in axes.get_xticklabels()] == [str(length) for length in LENGTHS]
    assert legend(figures[0])[-2:] == ["dense", "limit,\nall weights on the device"]


def test_projected_lines_have_open_markers_and_are_called_so(tmp_path, figures):
    plot_lengths(bench(projected=True), tmp_path / "l.png")
    plot_lengths(bench(), tmp_path / "l.png")
    for figure, projected in zip(figures, (True, False), strict=True):
        (axes,) = figure.axes
        marked = [line for line in axes.lines if line.get_marker() != "None"]
        assert len(marked) == 4
        assert all((line.get_markerfacecolor() == "white") == projected for line in marked)
        assert all(("(projected)" in line.get_label()) == projected for line in marked)
        assert axes.get_title(loc="left").endswith("(projected)") == projected


def test_batches_draw_dense_among_the_methods(tmp_path, figures):
    record = bench(("dense", "corematching"), batches=(4, 1, 2))
    plot_batches(record, tmp_path / "b.png")
    lines = shown(figures[0].axes[0])
    assert lines == {
        "dense": ([1, 2, 4], pytest.approx([10, 10.5, 11.5])),
        "corematching": ([1, 2, 4], pytest.approx([6.4, 6.72, 7.36])),
    }


def test_the_smallest_batch_is_drawn_and_named(tmp_path, figures):
    record = bench(batches=(2, 1))
    plot_methods(record, tmp_path / "m.png")
    plot_lengths(record, tmp_path / "l.png")
    assert len(figures[0].axes[0].patches) == len(SPARSE)
    assert figures[0].get_suptitle() == "Speed-up over dense at batch 1: llava-1.5-7b, cpu"
    assert figures[1].axes[0].get_title(loc="left") == "End-to-end speed-up at batch 1: llava-1.5-7b, cpu"


def test_a_method_keeps_its_colour_and_each_decoder_has_a_marker(tmp_path, figures):
    plot_lengths(bench(("dense", "core-tokens", "corematching"), decoders=("eager generate", "graph")), tmp_path / "l")
    lines = [line for line in figures[0].axes[0].lines if line.get_marker() != "None"]
    assert [line.get_color() for line in lines] == [COLORS[1], COLORS[2]] * 2
    assert len({line.get_marker() for line in lines}) == 4
    assert lines[0].get_label() == "core-tokens\neager generate"


def test_plots_are_those_that_there_is_data_for(tmp_path, figures):
    assert [path.name for path in write_bench_plots(bench(), tmp_path)] == ["methods.png", "lengths.png"]
    names = [path.name for path in write_bench_plots(bench(batches=(1, 2)), tmp_path)]
    assert names == ["methods.png", "lengths.png", "batches.png"]
    assert write_bench_plots(BenchRecord("m", ()), tmp_path) == ()
    assert write_bench_plots(bench(("dense",)), tmp_path) == ()
    assert len(figures) == 5


@pytest.mark.parametrize(
    ("draw", "record", "message"),
    [
        (plot_methods, bench(("dense",)), "no method has a prefill or a decode step beside dense's"),
        (plot_methods, bench(("corematching",)), "no method has a prefill"),
        (plot_lengths, bench(("corematching",)), "no method was run end to end at two lengths beside dense"),
        (plot_batches, bench(), "no method was decoded at two batch sizes"),
        (plot_batches, BenchRecord("m", ()), "no method was decoded"),
    ],
)
def test_what_cannot_be_drawn(tmp_path, draw, record, message):
    with pytest.raises(DataError, match=message):
        draw(record, tmp_path / "x.png")


def test_a_folder_that_cannot_be_written_is_no_missing_data(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"methods\.png"):
        write_bench_plots(bench(), tmp_path / "file")


def test_same_record_same_files(tmp_path):
    record = bench(("dense", "corematching"), batches=(1, 2))
    for first, second in zip(*(write_bench_plots(record, tmp_path / name) for name in "ab"), strict=True):
        assert first.read_bytes() == second.read_bytes()
        assert first.read_bytes().startswith(b"\x89PNG")
