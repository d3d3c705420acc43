"""Rows, errors over questions, records, tables, plots and comparisons of fidelity on numbers that are known."""

import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from rich.console import Console

from coremat.errors import DataError, RecordError
from coremat.results.check.compare import compare
from coremat.results.check.forms import FORMS, RULES, render, to_table
from coremat.results.check.rows import Limits
from coremat.results.plots.fidelity import plot_costs, plot_positions, write_plots
from coremat.results.record.fidelity import FidelityRecord, FidelityRow
from coremat.results.statistics import clustered_mean, standard_error
from coremat.results.tables.eval import render as render_table
from coremat.results.tables.fidelity import fidelity_table, nats, positions_table
from coremat.results.tables.terminal import Fitted
from coremat.tasks.fidelity.rows import make_row

COSTS = {"prompt_tokens": 9, "image_tokens": 4, "image_tokens_kept": 2, "neurons": 8, "neurons_kept": 4.0}
COSTS |= {"ffn_read_mib": 1.5, "prefill_tflops": 0.25, "kv_cache_mib": 2.0}


def line(kl: list[float], first: int | None = None, number: int = 0, method: str = "griffin") -> dict[str, Any]:
    agreement = [float(value < 0.5) for value in kl]
    values = {"kl": kl, "agreement": agreement, "nll": [2 * value for value in kl], "first_difference": first}
    return {"method": method, "source": "p.jsonl", "doc_id": number, **values, **COSTS, "key": f"{method} {number}"}


LINES = [line([0.1, 0.9, 0.2], 1), line([0.3], None), line([0.0, 0.6], 0)]


# --- errors and rows --------------------------------------------------------------------------------------------------


def test_a_clustered_mean_of_equal_clusters_is_that_of_their_means() -> None:
    sums = [3.0, 5.0, 1.0, 4.0]
    mean, error = clustered_mean(sums, [2, 2, 2, 2])
    assert mean == fmean(sums) / 2
    assert error == pytest.approx(standard_error([one / 2 for one in sums]))


def test_a_clustered_error_is_that_of_redrawn_clusters() -> None:
    """Held to a bootstrap of whole clusters; tokens drawn one by one would give less than half."""
    import numpy as np

    draw = np.random.default_rng(0)
    sizes = draw.integers(5, 30, 200)
    sums = np.array([size * draw.normal(1, 1) + draw.normal(0, 0.2) for size in sizes])
    mean, error = clustered_mean(sums, sizes)
    picks = draw.integers(0, 200, (4000, 200))
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    assert mean == pytest.approx(sums.sum() / sizes.sum())
    assert error == pytest.approx(means.std(), rel=0.05)
    assert clustered_mean([1.0], [2]) == (0.5, None)
    with pytest.raises(DataError, match="a sum and a size of each, not 0 and 0"):
        clustered_mean([], [])


def test_a_row_by_hand() -> None:
    row = make_row("griffin", "p.jsonl", LINES)
    assert (row.questions, row.tokens) == (3, 6)
    assert row.kl == pytest.approx((0.1 + 0.9 + 0.2 + 0.3 + 0.0 + 0.6) / 6)
    assert row.nll == pytest.approx(2 * row.kl)
    assert row.agreement == pytest.approx(100 * 4 / 6)
    residuals = [total - row.kl * size for total, size in ((1.2, 3), (0.3, 1), (0.6, 2))]
    assert row.kl_se == pytest.approx(stdev(residuals) / math.sqrt(3) / 2)
    assert row.first_difference == pytest.approx((1 + 1 + 0) / 3)  # the one that never differs counts with its length
    assert row.first_difference_se == pytest.approx(stdev([1, 1, 0]) / math.sqrt(3))
    assert row.same_share == pytest.approx(100 / 3)
    assert (row.image_tokens_kept, row.ffn_read_mib, row.prompt_tokens) == (2, 1.5, 9)
    there = row.by_position
    assert there["questions"] == [3, 2, 1]
    assert there["kl"] == pytest.approx([(0.1 + 0.3 + 0.0) / 3, (0.9 + 0.6) / 2, 0.2])
    assert there["agreement"] == pytest.approx([100, 0, 100])
    assert there["same"] == pytest.approx([200 / 3, 0, 0])
    assert there["kl_se"][1] == pytest.approx(stdev([0.9, 0.6]) / math.sqrt(2))
    assert there["kl_se"][2] is None


def test_a_single_question_has_no_error() -> None:
    row = make_row("griffin", "p.jsonl", LINES[:1])
    assert (row.kl_se, row.agreement_se, row.same_share_se) == (None, None, None)


# --- records, tables, plots -------------------------------------------------------------------------------------------


def record(*lines: dict[str, Any], model: str = "tiny", **config: Any) -> FidelityRecord:
    dense = [line([0.0] * len(one["kl"]), None, one["doc_id"], "dense") for one in lines]
    dense = [one | {"ffn_read_mib": 3.0, "image_tokens_kept": 4} for one in dense]
    names = dict.fromkeys(["dense", *(one["method"] for one in lines)])
    rows = [make_row(name, "p.jsonl", [one for one in (*dense, *lines) if one["method"] == name]) for name in names]
    methods = {name: {"name": name.partition(":")[0], "options": {}} for name in names}
    return FidelityRecord(model, tuple(rows), {"methods": methods, "new_tokens": 4, **config})


def numbered(method: str, *values: list[float]) -> list[dict[str, Any]]:
    return [line(kl, None, number, method) for number, kl in enumerate(values)]


SWEEP = [
    one | {"ffn_read_mib": read, "image_tokens_kept": 4}
    for share, read in ((0.4, 1.2), (0.6, 1.8))
    for one in numbered(f"griffin:beta={share}", [0.5 - share / 2, 0.3], [0.2, 0.1])
]
TOKENS = [one | {"ffn_read_mib": 3.0} for one in numbered("fastv", [1e-6, 2e-5], [1e-5, 1e-6])]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = record(*LINES)
    assert FidelityRecord.read(written.write(tmp_path)) == written


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kl": "0.1"}, "row 2: kl is '0.1'"),
        ({"questions": 1.5}, "questions is 1.5"),
        ({"method": 3}, "method is 3"),
        ({"by_position": {"kl": [1, "a"]}}, "by_position must be an object of lists of numbers"),
        ({"by_position": [1]}, "by_position must be an object of lists"),
        ({"by_position": {"kl": [1], "nll": []}}, "of one length"),
    ],
)
def test_a_broken_record_is_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = record(*LINES).write(tmp_path)
    document = json.loads(path.read_text())
    document["rows"][1] |= changes
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError, match=said):
        FidelityRecord.read(tmp_path)
    del document["rows"][1]["tokens"]
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError, match="row 2 lacks tokens"):
        FidelityRecord.read(tmp_path)


def test_the_table_says_errors_savings_and_what_was_left_out() -> None:
    broken = [{"source": "p.jsonl", "doc_id": number, "reason": "why"} for number in (4, 5, 6, 7)]
    broken[0]["method"] = "griffin"
    table = fidelity_table(record(*LINES, broken=broken, skipped={"fastv": "no images."}))
    headings = [column.heading.replace("\n", " ") for column in table.columns]
    row = dict(zip(headings, table.rows[1], strict=True))
    assert row["KL nats/tok"] == f"0.3500 ± {make_row('griffin', 'p.jsonl', LINES).kl_se:.4f}"
    assert (row["answers"], row["tokens"], row["image tokens"], row["neurons kept of"]) == ("3", "6", "4→2", "4/8")
    assert "fastv skipped: no images." in table.notes
    assert table.notes[-1] == "left out: 4: p.jsonl 4 (griffin: why); p.jsonl 5 (why); p.jsonl 6 (why); ...."
    assert render_table(table, "csv").splitlines()[0].startswith("method,source,questions,tokens,kl,kl_se,agreement,")
    without = replace(record(*LINES), rows=tuple(replace(row, image_tokens=0) for row in record(*LINES).rows))
    assert "image\ntokens" not in [column.heading for column in fidelity_table(without).columns]


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0.0000"), (7e-6, "7e-06"), (0.00005, "0.0001"), (None, "")])
def test_nats(value: float | None, shown: str) -> None:
    assert nats(value) == shown


@pytest.mark.parametrize("width", [80, 120])
def test_no_number_is_cut_on_a_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=StringIO())
    table = fidelity_table(record(*SWEEP, *TOKENS))
    console.print(Fitted(table), crop=False)
    text = console.export_text()
    assert all(len(shown) <= width for shown in text.splitlines())
    words = {word for row in table.rows for cell in row[2:] for word in cell.split()}
    assert words <= set(text.split())


def test_positions_are_rows_for_other_programs() -> None:
    text = render_table(positions_table(record(*LINES)), "csv").splitlines()
    assert text[0] == "method,source,position,questions,kl,kl_se,agreement,agreement_se,nll,nll_se,same,same_se"
    assert len(text) == 1 + 2 * 3
    assert text[-1].startswith("griffin,p.jsonl,2,1,0.2,,100.0,,")


def test_plots_show_each_saving_and_each_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    save = "coremat.results.plots.fidelity.save_figure"
    monkeypatch.setattr(save, lambda figure, path: figures.append(figure) or path)
    plot_costs(record(*SWEEP, *TOKENS), tmp_path / "kl.png")
    reads, images = figures[0].axes
    assert (reads.get_xlabel(), images.get_xlabel()) == ("FFN MiB read per token", "image tokens kept")
    [line_of_two] = [own for own in reads.lines if len(own.get_xdata()) == 2 and own.get_label() != "dense"][:1]
    assert list(line_of_two.get_xdata()) == [1.2, 1.8]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["dense", "griffin", "fastv"]
    assert reads.get_yscale() == "log"
    plot_positions(record(*SWEEP, *TOKENS), tmp_path / "positions.png")
    names = [text.get_text() for text in figures[1].legends[0].get_texts()]
    assert names == ["griffin:beta=0.4", "griffin:beta=0.6", "fastv"]


def test_plots_of_one_record_are_the_same_bytes_and_dense_alone_has_none(tmp_path: Path) -> None:
    paths = write_plots(record(*SWEEP, *TOKENS), tmp_path)
    assert [path.name for path in paths] == ["kl.png", "positions.png"]
    before = [path.read_bytes() for path in paths]
    write_plots(record(*SWEEP, *TOKENS), tmp_path)
    assert [path.read_bytes() for path in paths] == before
    assert before[0].startswith(b"\x89PNG")
    assert write_plots(record(*numbered("dense", [0.0])), tmp_path / "none") == ()


# --- comparisons ------------------------------------------------------------------------------------------------------


def save(folder: Path, lines: list[dict[str, Any]], samples: bool = True, **config: Any) -> Path:
    made = record(*lines, **config)
    made.write(folder)
    if samples:
        (folder / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


LIMITS = Limits()
BEFORE = numbered("griffin", *([0.1 + n / 100, 0.2] for n in range(20)))


def changed(factor: float, add: float = 0) -> list[dict[str, Any]]:
    return numbered("griffin", *([factor * value + add for value in one["kl"]] for one in BEFORE))


def verdicts(now: Path, before: Path, limits: Limits = LIMITS) -> dict[str, tuple[str, str]]:
    rows = compare(now, before, limits).rows
    return {row.measure: (row.verdict, row.rule) for row in rows if row.method == "griffin"}


def test_a_run_is_its_own_baseline(tmp_path: Path) -> None:
    folder = save(tmp_path, BEFORE)
    assert verdicts(folder, folder) == {"kl": ("ok", "kl, paired"), "agreement": ("ok", "paired")}
    assert compare(folder, folder, Limits()).summary == "no regression in 4 rows"


@pytest.mark.parametrize(("factor", "verdict"), [(0.5, "ok"), (1.09, "ok"), (1.11, "regressed")])
def test_kl_may_rise_by_a_tenth(tmp_path: Path, factor: float, verdict: str) -> None:
    now, before = save(tmp_path / "now", changed(factor)), save(tmp_path / "before", BEFORE)
    assert verdicts(now, before)["kl"] == (verdict, "kl, paired")


def test_a_kl_of_rounding_is_no_regression(tmp_path: Path) -> None:
    small = numbered("griffin", *[[1e-6, 2e-6]] * 5)
    large = numbered("griffin", *[[9e-4, 1e-5]] * 5)
    assert verdicts(save(tmp_path / "now", large), save(tmp_path / "before", small))["kl"][0] == "ok"


def test_chance_is_no_regression(tmp_path: Path) -> None:
    """One question of twenty carries the whole rise."""
    worse = [*BEFORE[:-1], line([2.0, 0.2], None, 19)]
    now, before = save(tmp_path / "now", worse), save(tmp_path / "before", BEFORE)
    assert verdicts(now, before)["kl"] == ("ok", "kl, paired")


def test_without_the_lines_it_is_two_errors(tmp_path: Path) -> None:
    before = save(tmp_path / "before", BEFORE, samples=False)
    assert verdicts(save(tmp_path / "now", changed(1.2), samples=False), before)["kl"] == (
        "regressed",
        "kl, two errors",
    )
    assert verdicts(save(tmp_path / "little", changed(1.0, 0.001)), before)["kl"] == ("ok", "kl, two errors")


def test_answers_of_other_lengths_are_no_pairs(tmp_path: Path) -> None:
    longer = [*BEFORE[:-1], line([0.1, 0.2, 0.1], None, 19)]
    assert verdicts(save(tmp_path / "a", longer), save(tmp_path / "b", BEFORE))["kl"][1] == "kl, two errors"


def test_one_question_alone_has_no_chance(tmp_path: Path) -> None:
    before = save(tmp_path / "before", BEFORE[:1], samples=False)
    now = save(tmp_path / "now", changed(1.2)[:1], samples=False)
    assert verdicts(now, before) == {"kl": ("regressed", "kl alone"), "agreement": ("ok", "drop alone")}


def test_agreement_may_fall_by_the_limit(tmp_path: Path) -> None:
    now, before = save(tmp_path / "now", changed(1, 0.35)), save(tmp_path / "before", BEFORE)
    assert verdicts(now, before)["agreement"] == ("regressed", "paired")
    assert verdicts(now, before, Limits(max_drop=100))["agreement"] == ("ok", "paired")


def test_a_method_that_is_gone_regressed_and_a_new_one_is_new(tmp_path: Path) -> None:
    one, two = save(tmp_path / "one", BEFORE), save(tmp_path / "two", [*BEFORE, *TOKENS])
    gone = {(row.measure, row.verdict) for row in compare(one, two, Limits()).rows if row.method == "fastv"}
    assert gone == {("kl", "regressed"), ("agreement", "regressed")}
    new = {row.verdict for row in compare(two, one, Limits()).rows if row.method == "fastv"}
    assert new == {"new"}


def test_every_form_says_it(tmp_path: Path) -> None:
    now, before = save(tmp_path / "now", changed(1.5)), save(tmp_path / "before", BEFORE, new_tokens=5)
    comparison = compare(now, before, Limits())
    table = to_table(comparison)
    assert "differs from the baseline: new_tokens." in table.notes
    assert any(note.startswith("kl, paired: a regression if it rose") for note in table.notes)
    [row] = [row for row in table.rows if row[0] == "griffin" and row[2] == "kl"]
    assert row[3].startswith("0.2963 ± ")
    assert row[-1] == "REGRESSED"
    for form in FORMS:
        assert "kl of griffin, p.jsonl" in render(comparison, form)
    assert {"kl, paired", "kl, two errors", "kl alone"} <= set(RULES)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    folder = save(tmp_path, BEFORE)
    with pytest.raises(RecordError, match="has no times, and --min-speedup needs them"):
        compare(folder, folder, Limits(min_speedup=1.5))


def test_a_row_takes_plain_numbers_only() -> None:
    assert FidelityRow(method="a", source="b", questions=0, tokens=0, kl=math.nan).kl is None
