"""The paper's tables, and measured rows beside them."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from rich.console import Console

from coremat.errors import UnknownNameError
from coremat.results.paper import HEADINGS, TEXT_COLUMNS, TITLES, beside, beside_frame, paper_table
from coremat.results.record import Record, Row
from coremat.results.tables import FORMS, render, to_csv, to_rich

DATA = Path(__file__).parents[2] / "results" / "paper"
ROW = Row(
    method="corematching",
    task="gqa",
    metric="exact_match",
    score=62.34,
    samples=12578,
    image_tokens=576,
    image_tokens_kept=60.0,
    neurons=11008,
    neurons_kept=4403,
    prefill_tflops=2.134,
)
POPE = replace(ROW, task="pope", score=85.0, samples=8910, image_tokens_kept=80.5, prefill_tflops=2.3)
RECORD = Record("llava-1.5-7b", (ROW, POPE), {"flops_convention": "2*MAC", "prompt_tokens": 610})


def ours(frame: pandas.DataFrame, source: str = "measured") -> list[dict[str, object]]:
    """The rows of one source, without what they do not have."""
    rows = frame[frame["source"] == source].to_dict("records")
    return [{name: value for name, value in row.items() if pandas.notna(value)} for row in rows]


@pytest.mark.parametrize("number", TITLES)
def test_table_is_its_file(number):
    (path,) = DATA.glob(f"table{number}_*.csv")
    table = paper_table(number)
    assert list(table.printed) == list(csv.DictReader(path.open(encoding="utf-8")))
    assert table.frame.shape == (len(table.printed), len(table.printed[0]))
    numbers = table.frame[[name for name in table.columns if name not in TEXT_COLUMNS]]
    assert all(pandas.api.types.is_numeric_dtype(kind) for kind in numbers.dtypes)
    assert f"Table {number}" in table.source


def test_numbers_as_in_the_paper():
    frame = paper_table(2).frame.set_index(["model", "method"])
    assert frame.loc[("llava-1.5-7b", "corematching"), "mme"] == 1506.5
    assert pandas.isna(frame.loc[("llava-1.5-7b", "voco-llama"), "pope"])
    assert paper_table(1).frame["accuracy_percent"].tolist() == [45.1, 53.2, 55.8, 56.3, 57.8]


def test_paper_cells_are_shown_as_printed():
    table = beside(3)
    assert (table.rows[0][10], table.rows[3][13]) == ("1.00", "0.820")
    assert "paper,llava-1.5-7b,titanxp,dense,yes,no,no,304.8,8.26,15.63,1.00,10.1,2.23,0.845,44.2" in to_csv(table)


@pytest.mark.parametrize("number", [0, 9, -1, 42])
def test_number_out_of_range(number):
    with pytest.raises(UnknownNameError, match=rf"unknown table of the paper '{number}'.*1, 2, 3, 4, 5, 6, 7, 8$"):
        beside(number)


@pytest.mark.parametrize("number", TITLES)
def test_without_records_there_is_only_the_paper(number):
    frame = beside_frame(number)
    assert set(frame["source"]) == {"paper"}
    pandas.testing.assert_frame_equal(frame[paper_table(number).columns], paper_table(number).frame, check_dtype=False)


@pytest.mark.parametrize("number", TITLES)
def test_every_column_of_numbers_has_a_heading(number):
    numbers = set(paper_table(number).columns) - TEXT_COLUMNS
    assert numbers - {"neurons"} <= set(HEADINGS)


def test_scores_and_costs_in_the_columns_of_table_2():
    assert ours(beside_frame(2, [RECORD])) == [
        {
            "source": "measured",
            "model": "llava-1.5-7b",
            "method": "corematching",
            "image_tokens": 70.25,
            "prefill_tflops": pytest.approx(2.217),
            "gqa": 62.34,
            "pope": 85.0,
        }
    ]
    (row,) = (row for row in beside(2, [RECORD]).rows if row[0] == "measured")
    assert [cell for cell in row if cell] == [
        "measured",
        "llava-1.5-7b",
        "corematching",
        "70.2",
        "2.22",
        "62.3",
        "85.0",
    ]


def test_difference_where_both_have_a_number():
    (difference,) = ours(beside_frame(2, [RECORD]), "difference")
    assert difference == {
        "source": "difference",
        "model": "llava-1.5-7b",
        "method": "corematching",
        "image_tokens": 6.25,
        "prefill_tflops": pytest.approx(0.117),
        "gqa": pytest.approx(0.44),
        "pope": pytest.approx(-0.9),
    }
    row = beside(2, [RECORD]).rows[-1]
    assert [cell for cell in row if cell][3:] == ["+6.2", "+0.1", "+0.4", "-0.9"]


def test_difference_of_nothing_has_a_plus():
    row = replace(ROW, score=61.86)
    assert beside(2, [Record("llava-1.5-7b", (row,))]).rows[-1][7] == "+0.0"


@pytest.mark.parametrize(("model", "method"), [("bundled", "corematching"), ("llava-1.5-7b", "core-tokens")])
def test_no_difference_to_another_model_or_method(model, method):
    frame = beside_frame(2, [Record(model, (replace(ROW, method=method),))])
    assert len(ours(frame)) == 1
    assert not ours(frame, "difference")


def test_no_difference_to_a_cell_that_the_paper_left_empty():
    record = Record("llava-1.5-7b", (replace(ROW, method="trim", task="textvqa"),))
    assert "textvqa" not in ours(beside_frame(2, [record]), "difference")[0]
    assert [cell for cell in beside(2, [record]).rows[-1] if cell][3:] == ["-61.0", "-0.1"]


@pytest.mark.parametrize("number", TITLES)
def test_no_number_moves_from_paper_to_measured(number):
    """A record of nothing but names and unmeasured scores leaves every cell of numbers empty."""
    tasks = [name for name in paper_table(number).columns if name not in TEXT_COLUMNS]
    rows = [Row(method=m, task=t, metric="m", samples=1) for m in ("corematching", "core-neurons") for t in tasks]
    frame = beside_frame(number, [Record("llava-1.5-7b", tuple(rows), neurons_alone(0.4))])
    for row in ours(frame):
        assert set(row) <= {"source", "model", "method", "task", "keep_ratio"}
    assert not ours(frame, "difference")


def test_cost_that_one_task_lacks_is_empty():
    record = Record("llava-1.5-7b", (ROW, replace(POPE, prefill_tflops=None)))
    (row,) = ours(beside_frame(2, [record]))
    assert "prefill_tflops" not in row
    assert row["image_tokens"] == 70.25


def test_tasks_are_mapped_to_columns():
    row = replace(ROW, task="vqav2_val_lite", score=77.0)
    (cells,) = ours(beside_frame(2, [Record("m", (row, ROW))], {"vqav2_val_lite": "vqav2", "other": "gone"}))
    assert (cells["vqav2"], cells["gqa"]) == (77.0, 62.34)


def test_first_metric_of_a_task_counts():
    rows = (replace(POPE, metric="f1", score=85.0), replace(POPE, metric="accuracy", score=99.0))
    (cells,) = ours(beside_frame(2, [Record("m", rows)]))
    assert cells["pope"] == 85.0


def test_rows_of_each_method_and_record():
    record = Record("m", (ROW, replace(ROW, method="dense"), replace(ROW, method="fastv")))
    frame = beside_frame(2, [record, replace(record, model="n")])
    assert [(row["model"], row["method"]) for row in ours(frame)] == [
        (model, method) for model in "mn" for method in ("corematching", "dense", "fastv")
    ]


def test_qwen_columns_of_table_5():
    row = replace(ROW, task="docvqa", score=94.0, image_tokens_kept=25.04)
    table = beside(5, [Record("qwen2.5-vl-3b", (row,))])
    assert table.rows[-2][3:6] == ("25", "4403", "94.0")
    assert table.rows[-1][3:6] == ("+0.9", "+0.0", "+0.8")


def test_video_table_says_the_measured_model():
    row = replace(ROW, task="msvd-qa", score=70.0)
    frame = beside_frame(6, [Record("video-llava-7b", (row,))], {"msvd-qa": "msvd_accuracy"})
    assert ours(frame) == [
        {"source": "measured", "model": "video-llava-7b", "method": "corematching", "msvd_accuracy": 70.0}
    ]


def neurons_alone(beta: float, **others: dict) -> dict:
    """The config of a record in which core-neurons ran at this ratio."""
    return {"methods": {"core-neurons": {"neurons": "core", "tokens": "all", "beta": beta}, **others}}


def test_a_sweep_in_one_record_gives_a_row_for_each_ratio():
    methods = {f"core-neurons:beta={b}": {"neurons": "core", "tokens": "all", "beta": b} for b in (0.2, 0.6)}
    other = {"corematching": {"neurons": "core", "tokens": "knee", "beta": 0.4}}
    rows = tuple(replace(ROW, method=name) for name in (*methods, *other))
    measured = ours(beside_frame(1, [Record("llava-1.5-7b", rows, {"methods": methods | other})]))
    assert [(row["method"], row["keep_ratio"]) for row in measured] == list(zip(methods, (0.2, 0.6), strict=True))


def test_samples_in_the_notes_are_those_of_the_main_metric():
    rows = (replace(ROW, method="core-neurons"), replace(ROW, method="core-neurons", metric="f1", samples=3))
    notes = beside(1, [Record("m", rows, neurons_alone(0.4))]).notes
    assert f"m, measured samples: gqa {ROW.samples}." in notes


def test_keep_ratios_of_table_1():
    rows = (replace(ROW, method="core-neurons"), replace(ROW, method="core-neurons", metric="f1", score=1.0), POPE)
    records = [Record("llava-1.5-7b", rows, neurons_alone(beta)) for beta in (0.2, 1.0)]
    frame = beside_frame(1, records)
    common = {"source": "measured", "model": "llava-1.5-7b", "method": "core-neurons", "task": "gqa"}
    assert ours(frame) == [common | {"keep_ratio": beta, "accuracy_percent": 62.34} for beta in (0.2, 1.0)]
    assert not ours(frame, "difference")
    assert beside(1, records).rows[-1][-2:] == ("1", "62.3")


def test_table_1_needs_the_ratio():
    table = beside(1, [Record("m", (replace(ROW, method="core-neurons"),))])
    assert len(table.rows) == 5
    assert table.notes[-1] == "m: nothing in this record belongs to this table (its tasks: gqa)."


def test_core_tokens_of_table_7():
    dense = replace(ROW, method="dense", image_tokens_kept=576)
    frame = beside_frame(7, [Record("llava-1.5-7b", (dense, ROW, POPE))])
    assert ours(frame) == [
        {"source": "measured", "model": "llava-1.5-7b", "method": "corematching", "gqa": 60.0, "pope": 80.5}
    ]
    (difference,) = ours(frame, "difference")
    assert (difference["gqa"], difference["pope"]) == (pytest.approx(-16.6), pytest.approx(9.4))


def test_evaluation_adds_nothing_to_table_3():
    table = beside(3, [RECORD])
    assert {row[0] for row in table.rows} == {"paper"}
    assert any("bench record" in note for note in table.notes)
    assert "nothing in this record belongs to this table (its tasks: gqa, pope)" in table.notes[-1]


def test_notes_say_samples_and_flops():
    other = replace(ROW, task="shapes", samples=5)
    notes = beside(2, [replace(RECORD, rows=(*RECORD.rows, other))]).notes
    assert notes[-2] == "llava-1.5-7b, measured samples: gqa 12578, pope 8910."
    assert notes[-1] == "llava-1.5-7b, prefill TFLOPs: 2*MAC; prompt of 610 tokens (mean)."


def test_record_of_other_tasks_is_noted_and_adds_nothing():
    table = beside(2, [Record("bundled", (replace(ROW, task="shapes"),)), Record("empty", ())])
    assert {row[0] for row in table.rows} == {"paper"}
    assert table.notes[-2] == "bundled: nothing in this record belongs to this table (its tasks: shapes)."
    assert table.notes[-1] == "empty: nothing in this record belongs to this table (its tasks: none)."


@pytest.mark.parametrize("number", TITLES)
def test_table_fits_a_terminal_of_120_columns(number):
    tasks = paper_table(number).tasks or ["gqa"]
    methods = ("dense", "corematching", "core-neurons", "random-neurons")
    rows = tuple(replace(ROW, method=method, task=task) for method in methods for task in tasks)
    table = beside(number, [replace(RECORD, rows=rows), replace(RECORD, rows=rows, model="llava-1.5-13b")])
    file = io.StringIO()
    Console(width=120, file=file, color_system=None).print(to_rich(table))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 120
    assert sum(line.startswith(("paper ", "measured ", "difference ")) for line in lines) == len(table.rows)
    for form in FORMS:
        assert "nan" not in render(table, form).lower()
