"""`coremat check` and `--report` as CI calls them: what they print, and the exit code."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as xml

import pytest
from said import Run, refused

from coremat.cli.eval import BUNDLED_MODEL
from coremat.cli.report import append_report, show_table
from coremat.errors import ConfigError, OutputError
from coremat.results.record.eval import Record, Row
from coremat.results.tables.eval import Column, Table

ROW = Row(method="corematching", task="shapes", metric="accuracy", score=90.0, samples=100)
DENSE = replace(ROW, method="dense", score=95.0)
METHODS = {"corematching": {"name": "corematching", "shortens": {"tokens": True, "neurons": False}}}
CONFIG = {"limit": 100, "seed": 0, "tasks": ["shapes"], "methods": METHODS}
TABLE = Table("Two", (Column("a", numeric=False), Column("b")), (("x", "1"),), ("a", "b"), (("x", 1),))
REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    Record("tiny", (DENSE, ROW), CONFIG).write(tmp_path / "baseline")
    return tmp_path / "baseline"


@pytest.fixture
def worse(tmp_path: Path) -> Path:
    Record("tiny", (DENSE, replace(ROW, score=88.5)), CONFIG).write(tmp_path / "worse")
    return tmp_path / "worse"


def test_what_did_not_change_passes(run: Run, baseline: Path) -> None:
    code, out, err = run("check", baseline, "--baseline", baseline / "record.json")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "no regression in 2 rows"


def test_a_regression_is_shown_and_exits_with_one(run: Run, worse: Path, baseline: Path) -> None:
    code, out, err = run("check", worse, "--baseline", baseline)
    assert (code, err) == (1, "")
    [line] = [line for line in out.splitlines() if "REGRESSED" in line]
    assert [word for word in line.split() if word[0].isdigit()] == ["88.50", "90.00", "1.50"]
    assert "same questions" in line
    assert out.splitlines()[-1] == "1 of 2 rows regressed: accuracy of corematching, shapes"


def test_the_limit_is_the_users(run: Run, worse: Path, baseline: Path) -> None:
    assert run("check", worse, "--baseline", baseline, "--max-drop", 1.5)[0] == 0
    assert run("check", worse, "--baseline", baseline, "--max-drop", 1.4)[0] == 1


@pytest.mark.parametrize(("least", "code"), [(1.9, 0), (2.1, 1)])
def test_the_floor_of_speed(run: Run, tmp_path: Path, least: float, code: int) -> None:
    rows = (replace(DENSE, first_token_ms=10.0), replace(ROW, first_token_ms=5.0))
    Record("tiny", rows, CONFIG).write(tmp_path)
    assert run("check", tmp_path, "--baseline", tmp_path, "--min-speedup", least)[0] == code


@pytest.mark.parametrize("name", ["speed", "speed-batches", "titanxp", "default", "token-budget"])
def test_committed_records_can_be_a_baseline(run: Run, name: str) -> None:
    code, out, _ = run("check", REFERENCE / name, "--baseline", REFERENCE / name)
    assert code == 0
    assert out.splitlines()[-1].startswith("no regression in ")


@pytest.mark.parametrize("form", ["text", "markdown", "github", "junit"])
def test_every_format_has_the_exit_code_and_nothing_beside_it(run: Run, worse: Path, baseline: Path, form: str) -> None:
    assert run("check", baseline, "--baseline", baseline, "--format", form)[0] == 0
    code, out, err = run("check", worse, "--baseline", baseline, "--format", form)
    assert (code, err) == (1, "")
    assert out.count("1 of 2 rows regressed") == 1
    if form == "junit":
        assert xml.fromstring(out.encode()).get("failures") == "1"
    if form == "github":
        assert [line.partition(" ")[0] for line in out.splitlines()] == ["::error", "::notice"]


def test_bad_input_is_one_sentence_and_exits_with_two(run: Run, worse: Path, baseline: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    ours = ("check", worse, "--baseline")
    assert "is not JSON" in refused(run(*ours, broken))
    assert "cannot read the record" in refused(run(*ours, tmp_path / "nowhere"))
    assert "of kind 'bench'" in refused(run(*ours, REFERENCE / "speed"))
    assert "--format is 'html'" in refused(run(*ours, baseline, "--format", "html"))
    assert "--max-drop is -1" in refused(run(*ours, baseline, "--max-drop", -1))
    assert "no first_token_ms of dense" in refused(run(*ours, baseline, "--min-speedup", 1.5))


def test_broken_answers_beside_a_record_are_told(run: Run, baseline: Path) -> None:
    (baseline / "samples.jsonl").write_text("{\n")
    assert "line 1 is not JSON" in refused(run("check", baseline, "--baseline", baseline))


def test_a_run_is_its_own_baseline_answer_by_answer(run: Run, tmp_path: Path) -> None:
    """The files that an evaluation writes are the ones that are compared pair by pair."""
    options = ("--tasks", "shapes", "--methods", "dense,core-tokens", "--limit", 6, "--model", BUNDLED_MODEL)
    assert run("eval", *options, "--output", tmp_path)[0] == 0
    code, out, _ = run("check", tmp_path, "--baseline", tmp_path)
    assert code == 0
    assert len([line for line in out.splitlines() if " paired " in line and line.rstrip().endswith("ok")]) >= 2


# --- reports ---------------------------------------------------------------------------------------------

MARKDOWN = "**Two**\n\n| a | b |\n| --- | ---: |\n| x | 1 |\n"


def test_a_report_is_added_to_the_summary_of_a_job(tmp_path: Path, monkeypatch, capsys) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("# Before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    show_table(TABLE, "markdown")
    append_report(TABLE, "markdown")
    assert summary.read_text() == f"# Before\n{MARKDOWN}\n{MARKDOWN}\n"
    out = capsys.readouterr().out
    assert "| x | 1 |" not in out
    assert "Two" in out


def test_a_report_is_printed_where_there_is_no_summary(monkeypatch, capsys) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    show_table(TABLE, "markdown")
    assert capsys.readouterr().out == MARKDOWN + "\n"


def test_without_a_report_the_summary_is_left_alone(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    show_table(TABLE)
    assert list(tmp_path.iterdir()) == []
    assert "Two" in capsys.readouterr().out


def test_a_report_that_cannot_be_given(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="--report is 'html'; accepted: markdown"):
        append_report(TABLE, "html")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    with pytest.raises(OutputError, match=r"cannot write the summary .*: Is a directory"):
        append_report(TABLE, "markdown")


def test_bench_reports(run: Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    code, out, err = run("bench", "--device", "titanxp", "--output", tmp_path / "run", "--report", "markdown")
    assert code == 0, err
    assert (tmp_path / "summary.md").read_text().count("**llava-1.5-7b: ") == 3
    assert "memory and prefill" in out


def test_a_report_of_no_known_form_is_refused_before_the_bench(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert "--report is 'html'" in refused(run("bench", "--report", "html", "--output", folder))
    assert not folder.exists()
