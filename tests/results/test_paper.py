"""The paper's tables, and measured rows beside them."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from made_bench import METHODS, bench
from rich.console import Console

from coremat.cli.table import paper_columns
from coremat.errors import UnknownNameError
from coremat.results.paper.printed import TEXT_COLUMNS, TITLES, paper_table
from coremat.results.paper.rows import paper_method
from coremat.results.paper.tables import HEADINGS
from coremat.results.paper.tables import beside as lay_beside
from coremat.results.paper.tables import beside_frame as lay_beside_frame
from coremat.results.record.eval import Record, Row
from coremat.results.tables.eval import FORMS, Table, render, to_csv
from coremat.results.tables.terminal import Fitted
from coremat.tasks.catalogue import TASKS

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
POPE = replace(
    ROW, task="pope", metric="pope_f1_score", score=85.0, samples=8910, image_tokens_kept=80.5, prefill_tflops=2.3
)
RECORD = Record("llava-1.5-7b", (ROW, POPE), {"flops_convention": "2*MAC", "prompt_tokens": 610})


COLUMNS = paper_columns()
POPES = TASKS["pope"].tasks


def beside(number, records=()):
    return lay_beside(number, records, COLUMNS)


def beside_frame(number, records=()):
    return lay_beside_frame(number, records, COLUMNS)


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


def test_cost_that_one_task_lacks_is_empty():
    record = Record("llava-1.5-7b", (ROW, replace(POPE, prefill_tflops=None)))
    (row,) = ours(beside_frame(2, [record]))
    assert "prefill_tflops" not in row
    assert row["image_tokens"] == 70.25


def test_rows_go_by_the_names_of_lmms_eval():
    row = replace(ROW, task="vqav2_val", score=77.0)
    (cells,) = ours(beside_frame(2, [Record("m", (row, ROW))]))
    assert (cells["vqav2"], cells["gqa"]) == (77.0, 62.34)


@pytest.mark.parametrize("turned", [False, True])
def test_the_metric_of_the_paper_counts(turned):
    """Of POPE the mean F1 of its three splits; of MME perception."""
    rows = (
        POPE,
        replace(POPE, metric="pope_accuracy", score=99.0),
        *(replace(POPE, task=f"pope_{split}", score=1.0) for split in ("adv", "pop", "random")),
        replace(ROW, task="mme", metric="mme_perception_score", score=1500.5),
        replace(ROW, task="mme", metric="mme_cognition_score", score=300.0),
    )
    (cells,) = ours(beside_frame(2, [Record("m", rows[::-1] if turned else rows)]))
    assert (cells["pope"], cells["mme"]) == (85.0, 1500.5)
    assert set(cells) == {"source", "model", "method", "image_tokens", "prefill_tflops", "pope", "mme"}


def test_a_metric_that_the_paper_has_not_is_in_no_table():
    record = Record("m", (replace(ROW, task="mme", metric="mme_cognition_score"), replace(POPE, task="pope_adv")))
    assert {row[0] for row in beside(2, [record]).rows} == {"paper"}


def test_library_users_name_the_columns():
    record = Record("m", (replace(ROW, task="mine", metric="right"),))
    (cells,) = ours(lay_beside_frame(2, [record], {("mine", "right"): "gqa"}))
    assert cells["gqa"] == 62.34
    assert not ours(lay_beside_frame(2, [record]))


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("fastv", "fastv"),
        ("fastv:tokens=144", "fastv"),
        ("prumerge+:tokens=146", "prumerge+"),
        ("corematching:beta=0.2", "corematching:beta=0.2"),
        ("fastv:tokens=144:prune_layer=3", "fastv:tokens=144:prune_layer=3"),
    ],
)
def test_a_budget_makes_no_other_method(method, name):
    assert paper_method(method) == name


def test_difference_of_a_method_with_the_papers_budget():
    rows = [replace(ROW, method=method, score=60.0) for method in ("fastv:tokens=144", "fastv:tokens=144:voters=last")]
    frame = beside_frame(2, [Record("llava-1.5-7b", tuple(rows))])
    (difference,) = ours(frame, "difference")
    assert (difference["method"], difference["gqa"]) == ("fastv:tokens=144", 2.5)


def test_rows_of_each_method_and_record():
    record = Record("m", (ROW, replace(ROW, method="dense"), replace(ROW, method="fastv")))
    frame = beside_frame(2, [record, replace(record, model="n")])
    assert [(row["model"], row["method"]) for row in ours(frame)] == [
        (model, method) for model in "mn" for method in ("corematching", "dense", "fastv")
    ]


def test_qwen_columns_of_table_5():
    row = replace(ROW, task="docvqa_val", metric="anls", score=94.0, image_tokens_kept=25.04)
    table = beside(5, [Record("qwen2.5-vl-3b", (row,))])
    assert table.rows[-2][3:6] == ("25", "4403", "94.0")
    assert table.rows[-1][3:6] == ("+0.9", "+0.0", "+0.8")


def test_video_table_says_the_measured_model():
    accuracy = replace(ROW, task="msvd_qa", metric="judge_accuracy", score=70.0)
    score = replace(accuracy, metric="judge_score", score=3.85)
    table = beside(6, [Record("video-llava-7b", (accuracy, score, replace(accuracy, metric="exact_match")))])
    assert table.raw_names[:6] == ("source", "model", "method", "size", "msvd_accuracy", "msvd_score")
    assert table.rows[-1] == ("measured", "video-llava-7b", "corematching", "", "70.0", "3.9", "", "", "", "")
    assert "video-llava-7b, measured samples: msvd_qa 12578." in table.notes


def test_neurons_alone_of_table_8():
    rows = [
        replace(ROW, method=m, task="vizwiz_vqa_val", score=s) for m, s in (("dense", 52.0), ("core-neurons", 50.0))
    ]
    frame = beside_frame(8, [Record("llama-3.2-11b-vision", tuple(rows))])
    assert [(row["method"], row["vizwiz"]) for row in ours(frame)] == [("dense", 52.0), ("core-neurons", 50.0)]
    assert [row["vizwiz"] for row in ours(frame, "difference")] == [-0.5, pytest.approx(0.2)]


NEURONS_ALONE = {"methods": {"core-neurons": {"name": "core-neurons"}}}


def at_ratio(row: Row, beta: float, **changes: Any) -> Row:
    """A row of core neurons alone: as many as a share of 11008 gives, rounded down."""
    fixed = {"method": "core-neurons", "neurons": 11008, "neurons_kept": int(beta * 11008)}
    return replace(row, **(fixed | changes))


def test_a_sweep_in_one_record_gives_a_row_for_each_ratio():
    ratios = {f"core-neurons:beta={beta}": beta for beta in (0.2, 0.6)}
    methods = {typed: {"name": "core-neurons"} for typed in ratios} | {"corematching": {"name": "corematching"}}
    rows = tuple(at_ratio(ROW, ratios.get(typed, 0.4), method=typed) for typed in methods)
    measured = ours(beside_frame(1, [Record("llava-1.5-7b", rows, {"methods": methods})]))
    assert [(row["method"], row["keep_ratio"]) for row in measured] == list(ratios.items())


def test_samples_in_the_notes_are_those_of_the_main_metric():
    rows = (replace(ROW, method="core-neurons"), replace(ROW, method="core-neurons", metric="f1", samples=3))
    notes = beside(1, [Record("m", rows, NEURONS_ALONE)]).notes
    assert f"m, measured samples: gqa {ROW.samples}." in notes


def test_keep_ratios_of_table_1():
    rows = [(at_ratio(ROW, beta), at_ratio(ROW, beta, metric="f1", score=1.0), POPE) for beta in (0.2, 1.0)]
    records = [Record("llava-1.5-7b", every, NEURONS_ALONE) for every in rows]
    frame = beside_frame(1, records)
    common = {"source": "measured", "model": "llava-1.5-7b", "method": "core-neurons", "task": "gqa"}
    assert ours(frame) == [common | {"keep_ratio": beta, "accuracy_percent": 62.34} for beta in (0.2, 1.0)]
    assert not ours(frame, "difference")
    assert beside(1, records).rows[-1][-2:] == ("1", "62.3")


def test_points_are_no_accuracy():
    """MME's main metric is in points, and its second one does not take its place."""
    mme = replace(ROW, method="core-neurons", task="mme", metric="mme_perception_score", score=1500.0)
    rows = (
        mme,
        replace(mme, metric="mme_cognition_score"),
        replace(mme, task="ai2d", metric="exact_match", score=54.0),
    )
    measured = ours(beside_frame(1, [Record("llava-1.5-7b", rows, NEURONS_ALONE)]))
    assert [(row["task"], row["accuracy_percent"]) for row in measured] == [("ai2d", 54.0)]


def test_what_is_on_lmms_evals_own_scale_is_no_accuracy():
    unknown = replace(ROW, method="core-neurons", task="captions", metric="cider", score=0.96)
    config = NEURONS_ALONE | {"own_scale": {"captions": ["cider"]}}
    assert ours(beside_frame(1, [Record("llava-1.5-7b", (unknown,), config)])) == []


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


def test_a_bench_of_the_whole_model_is_in_table_3():
    frame = beside_frame(3, [bench(("dense", "corematching:beta=0.2"), layers=32)])
    dense, sparse = ours(frame)
    assert sparse == {
        "source": "measured",
        "model": "llava-1.5-7b",
        "device": "cpu",
        "method": "corematching:beta=0.2",
        "neuron_sparse": "yes",
        "token_sparse": "yes",
        "kv_cache_mb": 49.0,
        "ffn_gb": pytest.approx(8.66 * 2201 / 11008),
        "total_gb": pytest.approx(7 + 8.66 * 2201 / 11008),
        "memory_ratio": pytest.approx(15.66 / (7 + 8.66 * 2201 / 11008)),
        "prefill_tflops": pytest.approx(0.202),
        "prefill_latency_s": pytest.approx(0.2),
        "decode_gflops": pytest.approx(0.32),
        "decode_latency_s": pytest.approx(0.32),
    }
    assert (dense["neuron_sparse"], dense["token_sparse"], dense["memory_ratio"]) == ("no", "no", 1.0)
    assert not ours(frame, "difference")  # another device than the paper's


def test_a_bench_on_the_papers_device_has_differences():
    record = bench(("dense", "corematching:beta=0.2"), layers=32, device="titanxp")
    dense, sparse = ours(beside_frame(3, [record]), "difference")
    assert (dense["device"], dense["method"], sparse["method"]) == ("titanxp", "dense", "corematching:beta=0.2")
    assert sparse["decode_latency_s"] == pytest.approx(0.32 - 4.81)
    assert [cell for cell in beside(3, [record]).rows[-1] if cell][4:] == [
        *("+0.0", "+0.08", "+0.11", "-0.03", "-1.9", "-0.85", "-0.166", "-4.49")
    ]


def test_a_trained_predictor_stands_beside_the_one_whose_time_the_paper_emulates(monkeypatch):
    monkeypatch.setitem(METHODS, "predictor:beta=0.2", METHODS["core-neurons"])
    record = bench(("dense", "predictor:beta=0.2"), layers=32, device="titanxp")
    *_, difference = ours(beside_frame(3, [record]), "difference")
    assert difference["method"] == "predictor:beta=0.2"
    assert difference["decode_latency_s"] == pytest.approx(64 * 0.0065 - 11.6)


def test_no_difference_in_decoding_another_number_of_tokens():
    whole = bench(("dense",), layers=32, device="titanxp")
    rows = tuple(replace(row, new_tokens=16) for row in whole.rows if row.phase in ("prefill", "decode"))
    record = replace(whole, rows=rows)
    frame = beside_frame(3, [record])
    assert ours(frame)[0]["decode_latency_s"] == pytest.approx(0.16)
    assert "prefill_latency_s" in ours(frame, "difference")[0]
    assert not {"decode_latency_s", "decode_gflops"} & set(ours(frame, "difference")[0])
    assert any("decode columns of 16 new tokens" in note for note in beside(3, [record]).notes)


@pytest.mark.parametrize("form", FORMS)
def test_a_projection_is_never_called_measured(form):
    record = bench(("dense", "corematching"), layers=32, device="titanxp", projected=True)
    table = beside(3, [record])
    assert {row[0] for row in table.rows} == {"paper", "projected", "difference"}
    (row,) = (row for row in table.rows if row[0] == "projected" and row[3] == "corematching")
    assert [cell for cell in row[7:] if cell] == [
        *("~49.0", "~3.46", "~10.5", "~1.50", "0.202", "~0.200", "0.410", "~0.410")
    ]
    assert table.rows[-1][-1] == "~-4.40"
    assert table.notes[-1].startswith("~: projected")
    mark = {"latex": r"\textasciitilde{}"}.get(form, "~")
    assert render(table, form).count(mark) >= 4 * 6
    assert not any("weights" in note for note in table.notes[len(paper_table(3).notes) :])  # nothing was run
    assert pandas.api.types.is_float_dtype(beside_frame(3, [record])["decode_latency_s"])


def test_rows_of_fewer_layers_stay_out():
    both = bench(("dense",), layers=32)
    record = replace(both, rows=(*bench(("dense",), layers=4).rows, *both.rows))
    assert len(ours(beside_frame(3, [record]))) == 1


def test_several_decoders_are_named():
    record = bench(("dense",), layers=32, decoders=("eager generate", "graph"))
    assert [row["method"] for row in ours(beside_frame(3, [record]))] == ["dense, eager generate", "dense, graph"]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (bench(), "4 of 32 decoder layers"),
        (bench(layers=32, weights=None), "its weights are not recorded"),
        (bench(model_layers=None), "the number of the model's layers is not recorded"),
        (bench(layers=32, batches=(2, 4)), "no row of batch size 1"),
        (replace(bench(layers=32), rows=()), "nothing was finished"),
    ],
)
def test_a_bench_of_something_else_gives_a_note_and_no_row(record, why):
    table = beside(3, [record])
    assert {row[0] for row in table.rows} == {"paper"}
    assert table.notes[-1] == f"llava-1.5-7b: this bench adds nothing to this table ({why})."


def test_a_bench_without_memory_leaves_its_cells_empty():
    record = replace(bench(("corematching",), layers=32), memory=())
    (row,) = ours(beside_frame(3, [record]))
    assert not {"kv_cache_mb", "ffn_gb", "total_gb", "memory_ratio"} & set(row)
    assert "None" not in to_csv(beside(3, [record]))


@pytest.mark.parametrize("number", set(TITLES) - {3})
def test_a_bench_adds_nothing_to_tables_of_scores(number):
    table = beside(number, [bench()])
    assert {row[0] for row in table.rows} == {"paper"}
    assert table.notes[-1] == "llava-1.5-7b: a bench measures no scores, and adds nothing to this table."


def test_decode_operations_are_in_the_unit_that_they_have():
    """0.845 for 64 tokens on 6.6 billion weights is TFLOP: 2 operations for each weight and token."""
    table = beside(3)
    assert table.columns[table.raw_names.index("decode_gflops")].heading == "decode\nTFLOPs"
    assert paper_table(3).frame["decode_gflops"][0] == pytest.approx(64 * 2 * 6.6e9 / 1e12, rel=0.001)


def test_notes_say_samples_and_flops():
    other = replace(ROW, task="shapes", samples=5)
    notes = beside(2, [replace(RECORD, rows=(*RECORD.rows, other))]).notes
    assert notes[-2] == "llava-1.5-7b, measured samples: gqa 12578, pope 8910."
    assert notes[-1] == "llava-1.5-7b, prefill TFLOPs: 2*MAC; prompt of 610 tokens (mean)."


def test_remarks_of_the_tasks_in_the_table():
    config = {"notes": {"pope": "a word is enough", "docvqa": "which split?"}}
    assert beside(2, [replace(RECORD, config=config)]).notes[-1] == "llava-1.5-7b, pope: a word is enough."
    assert not any("which split?" in note for note in beside(2, [replace(RECORD, config=config)]).notes)


def test_remarks_are_under_the_name_that_was_asked_for():
    """The rows say vqav2_val, the remark vqav2."""
    record = Record("m", (replace(ROW, task="vqav2_val"),), {"notes": {"vqav2": "here validation"}})
    assert "m, vqav2: here validation." in beside(2, [record]).notes


def test_record_of_other_tasks_is_noted_and_adds_nothing():
    table = beside(2, [Record("bundled", (replace(ROW, task="shapes"),)), Record("empty", ())])
    assert {row[0] for row in table.rows} == {"paper"}
    assert table.notes[-2] == "bundled: nothing in this record belongs to this table (its tasks: shapes)."
    assert table.notes[-1] == "empty: nothing in this record belongs to this table (its tasks: none)."


def of_every_task(model, methods):
    """An evaluation of every metric that the paper has, each with a score of its own."""
    metrics = [(task, metric) for task, metric in COLUMNS if task not in TASKS or TASKS[task].tasks in ((task,), POPES)]
    rows = [
        replace(ROW, method=method, task=task, metric=metric, score=10.0 + nth)
        for method in methods
        for nth, (task, metric) in enumerate(metrics)
    ]
    return Record(model, tuple(rows), RECORD.config | NEURONS_ALONE)


@pytest.mark.parametrize("number", TITLES)
def test_no_number_moves_from_paper_to_measured(number):
    """A record of nothing but names and unmeasured scores leaves every cell of numbers empty."""
    full = of_every_task("llava-1.5-7b", ("corematching", "core-neurons"))
    empty = [Row(method=row.method, task=row.task, metric=row.metric, samples=1) for row in full.rows]
    frame = beside_frame(number, [replace(full, rows=tuple(empty))])
    assert bool(ours(frame)) == (number != 3)
    for row in ours(frame):
        assert set(row) <= {"source", "model", "method", "task", "keep_ratio"}
    assert not ours(frame, "difference")


@pytest.mark.parametrize("number", set(TITLES) - {3})
def test_a_record_of_every_task_fills_every_task_column(number):
    record = of_every_task("llava-1.5-7b", ("dense", "corematching", "core-neurons"))
    frame = beside_frame(number, [record])
    measured = frame[frame["source"] == "measured"]
    columns = paper_table(number).tasks or ["keep_ratio", "accuracy_percent"]
    assert len(measured)
    assert measured[columns].notna().all(axis=None)
    found = {(row.task, row.metric): row.score for row in record.rows}
    if number not in (1, 7):
        expected = {column: found[key] for key, column in COLUMNS.items() if key in found}
        assert measured.iloc[0][columns].to_dict() == {column: expected[column] for column in columns}


@pytest.mark.parametrize("number", TITLES)
def test_table_fits_a_terminal_of_120_columns(number):
    methods = ("dense", "corematching", "core-neurons", "random-neurons")
    table = beside(number, [of_every_task(model, methods) for model in ("llava-1.5-7b", "llava-1.5-13b")])
    assert number == 3 or "measured" in {row[0] for row in table.rows}
    assert_fits(table)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", TITLES)
@pytest.mark.parametrize("records", [[], [of_every_task("llava-1.5-7b", ("corematching", "core-neurons"))]])
def test_every_form_has_every_row(number, form, records):
    """As many lines as rows, none with a word for what is not there."""
    table = beside(number, records)
    text = render(table, form)
    begins = {"markdown": "| {} |", "csv": "{},", "latex": "{} &"}[form]
    for source in {row[0] for row in table.rows}:
        rows = [row for row in table.rows if row[0] == source]
        assert sum(line.startswith(begins.format(source)) for line in text.splitlines()) == len(rows)
    assert not {"nan", "None"} & set(re.split(r"[ ,|&\n]+", text))


def test_table_3_with_a_projection_fits_a_terminal_of_120_columns():
    assert_fits(beside(3, [bench(layers=32, device="titanxp", projected=True)]))


def assert_fits(table: Table) -> None:
    """Every row is there, and the word that says where it is from stands whole."""
    file = io.StringIO()
    Console(width=120, file=file, color_system=None).print(Fitted(table))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 120
    words = ("paper ", "measured ", "projected ", "difference ")
    assert sum(line.startswith(words) for line in lines) == len(table.rows)


def test_a_model_from_a_folder_stands_beside_the_papers_of_that_name() -> None:
    record = replace(RECORD, model="/models/llava-1.5-7b-hf", config={**RECORD.config, "known_as": "llava-1.5-7b"})
    frame = beside_frame(2, [record])
    assert ours(frame)[0]["model"] == "llava-1.5-7b"
    assert ours(frame, "difference")[0]["gqa"] == pytest.approx(62.34 - 61.9)
