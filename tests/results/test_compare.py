"""The comparison of two records: every rule on numbers whose verdict is known, and its forms read back."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import pytest
from made_bench import bench

from coremat.errors import ConfigError, RecordError, UnknownNameError
from coremat.results.check.compare import compare
from coremat.results.check.forms import RULES, render, to_table
from coremat.results.check.rows import NEW, OK, REGRESSED, Compared, Comparison, Limits
from coremat.results.record.bench import BenchRecord
from coremat.results.record.bench_rows import BenchRow
from coremat.results.record.eval import Record, Row
from coremat.results.statistics import paired_bootstrap
from coremat.results.tables.eval import to_csv

CONFIG = {"limit": 100, "seed": 0, "tasks": ["shapes"]}
USUAL = Limits()


def described(name: str, tokens: bool = False, neurons: bool = False, **options: Any) -> dict[str, Any]:
    """A method as a record holds it."""
    return {"name": name, "options": options, "shortens": {"tokens": tokens, "neurons": neurons}, "slot": "none"}


METHODS = {
    "dense": described("dense"),
    "core-tokens": described("core-tokens", tokens=True),
    "core-neurons": described("core-neurons", neurons=True),
    "corematching": described("corematching", tokens=True, neurons=True),
    "oracle-neurons": described("oracle-neurons"),
}


def row(score: float | None = 90.0, method: str = "corematching", **changes: Any) -> Row:
    return Row(**{"method": method, "task": "shapes", "metric": "accuracy", "score": score, "samples": 100} | changes)


def save(folder: Path, *rows: Row, config: Mapping[str, Any] = CONFIG, model: str = "tiny") -> Path:
    Record(model, rows, config).write(folder)
    return folder


def answer(folder: Path, right: Sequence[int | float], metric: str = "accuracy", first: int = 0) -> None:
    """One line for each question, as a run leaves them."""
    lines = [
        {"method": "corematching", "task": "shapes", "doc_id": first + nth, "scores": {metric: float(score)}}
        for nth, score in enumerate(right)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Of the record and of its baseline."""
    return tmp_path / "now", tmp_path / "before"


def only(comparison: Comparison) -> Compared:
    [one] = comparison.rows
    return one


def scores(
    folders: tuple[Path, Path],
    now: Row,
    before: Row,
    config: Mapping[str, Any] = CONFIG,
    limits: Limits = USUAL,
) -> Compared:
    ours, theirs = folders
    return only(compare(save(ours, now, config=config), save(theirs, before, config=CONFIG), limits))


# --- scores ----------------------------------------------------------------------------------------------

OWN_SCALE = CONFIG | {"own_scale": {"shapes": ["cider"]}}


@pytest.mark.parametrize(
    ("now", "before", "max_drop", "verdict"),
    [
        (0.96, 1.10, 1.0, REGRESSED),
        (0.96, 1.10, 12.7, REGRESSED),
        (0.96, 1.10, 12.8, OK),
        (1.095, 1.10, 1.0, OK),
        (1.10, 0.96, 0.0, OK),
        (96.0, 110.0, 1.0, REGRESSED),
    ],
)
def test_on_lmms_evals_own_scale_a_point_is_one_per_cent(
    folders: tuple[Path, Path], now: float, before: float, max_drop: float, verdict: str
) -> None:
    rows = (row(score, metric="cider") for score in (now, before))
    assert scores(folders, *rows, config=OWN_SCALE, limits=Limits(max_drop)).verdict == verdict


def test_a_drop_on_lmms_evals_own_scale_is_said_in_its_digits(folders: tuple[Path, Path]) -> None:
    ours, theirs = (
        save(folder, row(score, metric="cider"), config=OWN_SCALE)
        for folder, score in zip(folders, (0.016, 0.018), strict=True)
    )
    comparison = compare(ours, theirs, USUAL)
    assert only(comparison).why == "fell by 0.002, from 0.018 to 0.016"
    table = to_table(comparison)
    assert table.rows[0][3:6] == ("0.0160", "0.0180", "0.0020")
    assert "cider of shapes: as lmms-eval gives it; a point is 1 % of the baseline's score." in table.notes


def flipped(lost: int, gained: int) -> tuple[list[int], list[int]]:
    """Right and wrong answers to 100 questions, now and in the baseline: 50 right in both but for these."""
    before = [1] * 50 + [0] * 50
    return [0] * lost + [1] * (50 - lost) + [1] * gained + [0] * (50 - gained), before


@pytest.mark.parametrize(
    ("lost", "gained", "verdict"),
    [(8, 0, REGRESSED), (2, 0, OK), (20, 17, OK), (30, 10, REGRESSED), (0, 8, OK), (1, 0, OK)],
)
def test_answers_to_the_same_questions_are_compared_pair_by_pair(folders, lost, gained, verdict) -> None:
    """8 of 100 lost and none won is no chance; 20 lost and 17 won is; both are 3 points or more."""
    now, before = flipped(lost, gained)
    for folder, right in zip(folders, (now, before), strict=True):
        folder.mkdir()
        answer(folder, right)
    found = scores(folders, row(50.0 - lost + gained), row(50.0))
    assert (found.rule, found.verdict) == ("paired", verdict)
    assert (found.drop, *found.interval) == paired_bootstrap([100 * one for one in before], [100 * one for one in now])


def test_an_answer_is_found_by_its_question_and_not_by_its_line(folders) -> None:
    ours, theirs = folders
    for folder in folders:
        folder.mkdir()
        answer(folder, [1] * 50 + [0] * 50)
    ours.joinpath("samples.jsonl").write_text(
        "\n".join(reversed((theirs / "samples.jsonl").read_text().splitlines())) + "\n"
    )
    assert scores(folders, row(50.0), row(50.0)).interval == (0, 0)


@pytest.mark.parametrize(
    "change",
    [{"first": 1}, {"metric": "f1"}, {"right": [1] * 99}, {"right": [1] * 50 + [0] * 50}],
    ids=["other questions", "other metric", "fewer questions", "not the mean of its questions"],
)
def test_what_has_no_pairs_is_judged_by_its_questions(folders, change) -> None:
    for folder in folders:
        folder.mkdir()
    answer(folders[1], [1] * 60 + [0] * 40)
    answer(folders[0], **{"right": [1] * 57 + [0] * 43} | change)
    found = scores(folders, row(57.0), row(60.0))
    assert (found.rule, found.interval) == ("same questions", None)


def test_a_score_may_have_any_unit(folders) -> None:
    """Points of 5: the drop and its interval are in the row's unit."""
    for folder, right in zip(folders, ([0.4] * 99 + [0.5], [0.8] * 99 + [0.9]), strict=True):
        folder.mkdir()
        answer(folder, right)
    found = scores(folders, row(5 * 0.401), row(5 * 0.801), limits=Limits(max_drop=1.5))
    assert found.verdict == REGRESSED
    assert found.interval == pytest.approx((2, 2))


def test_the_same_questions_leave_no_excuse_but_the_limit(folders) -> None:
    found = scores(folders, row(88.0, stderr=3.0), row(90.0, stderr=3.0))
    assert (found.rule, found.verdict) == ("same questions", REGRESSED)
    assert found.why == "fell by 2.00 points, from 90.00 to 88.00"
    assert scores(folders, row(88.0), row(90.0), limits=Limits(max_drop=2)).verdict == OK
    assert scores(folders, row(99.0), row(90.0)).verdict == OK


@pytest.mark.parametrize("score", [0.1 + 0.2, 90.3 - 1])
def test_exactly_the_limit_is_allowed(folders, score) -> None:
    assert scores(folders, row(score), row(round(score, 1) + 1)).verdict == OK


@pytest.mark.parametrize("change", [{"limit": None}, {"seed": 1}, {"tasks": ["gqa"]}])
def test_other_questions_have_errors_of_their_own(folders, change) -> None:
    """1.96 * sqrt(0.7^2 + 0.7^2) is 1.94, and with 0.8 it is 2.22."""
    other = CONFIG | change
    found = scores(folders, row(88.0, stderr=0.7), row(90.0, stderr=0.7), other)
    assert (found.rule, found.verdict) == ("two errors", REGRESSED)
    assert scores(folders, row(88.0, stderr=0.8), row(90.0, stderr=0.8), other).verdict == OK
    assert scores(folders, row(89.5, stderr=0.1), row(90.0, stderr=0.1), other).verdict == OK


def test_who_does_not_say_what_was_asked_has_errors_of_his_own(folders) -> None:
    assert scores(folders, row(88.0, stderr=3.0), row(90.0, stderr=3.0), {}).rule == "two errors"
    assert scores(folders, row(88.0, stderr=3.0, samples=99), row(90.0, stderr=3.0)).rule == "two errors"


def test_without_an_error_the_limit_counts_alone(folders) -> None:
    found = scores(folders, row(88.0, stderr=0.7), row(90.0), {})
    assert (found.rule, found.verdict) == ("drop alone", REGRESSED)
    assert scores(folders, row(89.5), row(90.0), {}).verdict == OK


def test_what_is_gone_regressed_and_what_is_new_is_listed(folders) -> None:
    ours, theirs = folders
    save(ours, row(None), row(80.0, "fastv"), row(None, "divprune"))
    save(theirs, row(90.0), row(70.0, task="gqa"), row(None, "divprune"))
    comparison = compare(ours, theirs, Limits(max_drop=100))
    assert [(one.method, one.where, one.verdict, one.why) for one in comparison.rows] == [
        ("corematching", "shapes", REGRESSED, "has no score, and was 90.00"),
        ("corematching", "gqa", REGRESSED, "is missing, and was 70.00"),
        ("fastv", "shapes", NEW, ""),
    ]
    assert comparison.summary == (
        "2 of 2 rows regressed: accuracy of corematching, shapes; accuracy of corematching, gqa"
    )


def test_rows_differ_by_method_task_and_metric(folders) -> None:
    rows = [row(90.0), row(80.0, "dense"), row(70.0, task="gqa"), row(60.0, metric="f1")]
    comparison = compare(save(folders[0], *rows), save(folders[1], *reversed(rows)), Limits(max_drop=0))
    assert [(one.verdict, one.drop) for one in comparison.rows] == [(OK, 0)] * 4
    assert comparison.summary == "no regression in 4 rows"


# --- speed of an evaluation ------------------------------------------------------------------------------


def timed(method: str, first_token: float | None = 10.0, decode: float | None = 4.0, **changes: Any) -> Row:
    return row(90.0, method, first_token_ms=first_token, decode_ms_per_token=decode, **changes)


def floors(folder: Path, least: float, *rows: Row) -> dict[tuple[str, str], tuple[float, str]]:
    save(folder, *rows, config=CONFIG | {"methods": METHODS})
    found = compare(folder, folder, Limits(min_speedup=least)).rows
    return {(one.method, one.measure): (one.now.value, one.verdict) for one in found if one.rule == "floor"}


def test_each_phase_that_a_method_shortens_has_a_floor(tmp_path: Path) -> None:
    rows = (timed("dense"), timed("core-tokens", 5.0, 9.0), timed("core-neurons", 20.0, 2.0))
    assert floors(tmp_path, 1.5, *rows, timed("corematching", 8.0, 3.0), timed("oracle-neurons", 90.0, 90.0)) == {
        ("core-tokens", "first token speed-up"): (2.0, OK),
        ("core-neurons", "decode speed-up"): (2.0, OK),
        ("corematching", "first token speed-up"): (1.25, REGRESSED),
        ("corematching", "decode speed-up"): (4 / 3, REGRESSED),
    }


def test_the_floor_is_over_dense_on_the_same_task_by_the_first_metric(tmp_path: Path) -> None:
    rows = [timed("dense", 10.0), timed("dense", 30.0, task="gqa"), timed("core-tokens", 10.0, task="gqa")]
    rows += [timed("core-tokens", 1.0, task="gqa", metric="f1"), timed("dense", 3.0, task="gqa", metric="f1")]
    assert floors(tmp_path, 3, *rows) == {("core-tokens", "first token speed-up"): (3.0, OK)}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([timed("core-tokens")], "no first_token_ms of dense on shapes"),
        ([timed("dense", None), timed("core-tokens")], "no first_token_ms of dense on shapes"),
        ([timed("dense"), timed("core-neurons", 1.0, None)], "no decode_ms_per_token of core-neurons on shapes"),
        ([timed("dense"), timed("core-tokens", 0)], "no first_token_ms of core-tokens on shapes"),
        ([timed("dense"), timed("fastv")], "does not say what fastv prunes"),
        ([timed("dense")], "no method that prunes anything"),
    ],
)
def test_a_floor_needs_times(tmp_path: Path, rows: list[Row], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        floors(tmp_path, 1.5, *rows)


# --- benches ---------------------------------------------------------------------------------------------


def end_to_end(method: str, samples: Sequence[float], **changes: Any) -> BenchRow:
    fixed = {"decoder": "eager", "phase": "end-to-end", "batch_size": 1, "layers": 4, "prompt_tokens": 610}
    return BenchRow(**{"method": method, "new_tokens": 64, "samples_ms": samples} | fixed | changes)


def speeds(
    folders: tuple[Path, Path], now: Sequence[float], before: Sequence[float], least: float | None = None
) -> Compared:
    for folder, samples in zip(folders, (now, before), strict=True):
        BenchRecord("m", (end_to_end("dense", [100.0] * 5), end_to_end("corematching", samples))).write(folder)
    return only(compare(*folders, Limits(min_speedup=least)))


@pytest.mark.parametrize(
    ("now", "before", "verdict"),
    [
        ([50.0] * 5, [50.0] * 5, OK),
        ([55.0] * 5, [50.0] * 5, OK),  # 9 % less
        ([57.0] * 5, [50.0] * 5, REGRESSED),  # 12 % less
        ([57.0, 57.0, 57.0, 40.0, 40.0], [50.0] * 5, OK),  # 12 % less, with runs that were faster
        ([57.0] * 5, [50.0, 50.0, 50.0, 80.0, 80.0], OK),
        ([25.0] * 5, [50.0] * 5, OK),
    ],
)
def test_a_speed_up_may_fall_by_a_tenth_and_by_its_spread(folders, now, before, verdict) -> None:
    found = speeds(folders, now, before)
    assert (found.rule, found.verdict) == ("spread", verdict)
    assert (found.method, found.where) == ("corematching", "eager, batch 1")


def test_a_faster_machine_is_no_regression_and_no_gain(folders) -> None:
    for folder, unit in zip(folders, (3.0, 1.0), strict=True):
        rows = (end_to_end("dense", [100 * unit] * 3), end_to_end("corematching", [50 * unit] * 3))
        BenchRecord("m", rows).write(folder)
    found = only(compare(*folders, USUAL))
    assert (found.now, found.drop) == (found.baseline, 0)


@pytest.mark.parametrize(("ms", "verdict"), [(50.0, OK), (66.0, OK), (67.0, REGRESSED)])
def test_the_floor_of_a_bench_stands_for_the_baseline(folders, ms, verdict) -> None:
    found = speeds(folders, [ms] * 5, [20.0] * 5, 1.5)
    assert (found.rule, found.verdict, found.baseline.value) == ("floor", verdict, 5)


def test_the_longest_answer_is_compared_and_dense_is_not(folders) -> None:
    for folder in folders:
        bench(["dense", "corematching"], decoders=("gathered", "graph"), batches=(1, 8)).write(folder)
    found = compare(*folders, Limits(min_speedup=1)).rows
    assert {(one.method, one.where) for one in found} == {
        ("corematching", f"{decoder}, batch {batch}") for decoder in ("gathered", "graph") for batch in (1, 8)
    }
    [first] = [one for one in found if one.where == "gathered, batch 1"]
    assert first.now.value == pytest.approx((100 + 400 + 63 * 10) / (100 + 200 + 63 * 6.4))


def test_a_projection_has_no_spread_and_its_mark(folders) -> None:
    for folder in folders:
        bench(["dense", "corematching"], projected=True).write(folder)
    comparison = compare(*folders, USUAL)
    assert only(comparison).rule == "fall alone"
    assert to_table(comparison).rows[0][3].startswith("~")
    assert to_table(comparison).raw[0][3].startswith("~")


def test_a_setup_that_is_gone_or_new(folders) -> None:
    bench(["dense", "core-tokens", "core-neurons"]).write(folders[0])
    bench(["dense", "core-tokens", "corematching"]).write(folders[1])
    found = {one.method: one.verdict for one in compare(*folders, USUAL).rows}
    assert found == {"core-tokens": OK, "corematching": REGRESSED, "core-neurons": NEW}


# --- what cannot be compared -----------------------------------------------------------------------------


def refused(record: Path, baseline: Path) -> str:
    with pytest.raises(RecordError) as caught:
        compare(record, baseline, USUAL)
    return str(caught.value)


def test_records_of_two_kinds_or_models(folders, tmp_path: Path) -> None:
    ours, theirs = save(folders[0], row()), save(folders[1], row(), model="other")
    bench(model="tiny").write(tmp_path / "bench")
    assert "model tiny, and the baseline" in refused(ours, theirs)
    assert "of kind 'eval' and model tiny, and the baseline" in refused(ours, tmp_path / "bench")
    assert "cannot read the record" in refused(ours, tmp_path / "nowhere")


def test_nothing_to_compare_is_no_success(folders) -> None:
    ours, theirs = save(folders[0], row()), save(folders[1])
    assert "has no row that" in refused(ours, theirs)
    BenchRecord("m", (end_to_end("dense", [1.0]),)).write(ours)
    BenchRecord("m", (end_to_end("dense", [1.0]),)).write(theirs)
    assert "has no row that" in refused(ours, theirs)


def test_other_work_is_no_comparison(folders) -> None:
    for folder, new_tokens in zip(folders, (32, 64), strict=True):
        pair = [end_to_end(method, [1.0], new_tokens=new_tokens) for method in ("dense", "corematching")]
        BenchRecord("m", tuple(pair)).write(folder)
    assert "610 prompt tokens and 32 new ones, there 610 prompt tokens and 64" in refused(*folders)


def test_what_makes_scores_hard_to_compare_is_noted(folders) -> None:
    ours = {"fastv": described("fastv", alpha=1), "x+y": {"parts": [described("x", seed=1), described("y", beta=0.2)]}}
    theirs = {"fastv": described("fastv", alpha=2, knee="signed"), "x+y": {"parts": [described("y", beta=0.4)]}}
    one = {"reading": {"square": True}, "weights": "a", "dtype": "float32", "methods": ours}
    other = {"reading": {"square": False}, "weights": "b", "methods": theirs}
    comparison = compare(save(folders[0], row(), config=one), save(folders[1], row(), config=other), USUAL)
    assert comparison.notes == ("differs from the baseline: reading, fastv (alpha), x+y (y beta).",)


def test_another_source_of_a_foreign_method_is_noted(folders) -> None:
    """The same file, typed alike, with other code in it."""
    for folder, sha in zip(folders, "ab", strict=True):
        source = {"source": {"file": "mine.py", "sha256": sha * 64}}
        save(folder, row(), config={"methods": {"./mine.py:Mine": described("Mine") | source}})
    assert compare(*folders, USUAL).notes == ("differs from the baseline: ./mine.py:Mine (source).",)
    assert compare(folders[0], folders[0], USUAL).notes == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_drop": -1}, "--max-drop is -1"),
        ({"max_drop": float("nan")}, "--max-drop is nan"),
        ({"min_speedup": 0}, "--min-speedup is 0"),
    ],
)
def test_limits_are_checked(values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Limits(**values)


# --- forms -----------------------------------------------------------------------------------------------

ODD = "a|b, 100%: \x01<&\"'\nüber"


@pytest.fixture
def comparison(folders) -> Comparison:
    """Two rows fine, one with an odd name regressed, one new."""
    now = [row(), row(70.0, ODD, stderr=1.0), row(90.0, "dense"), row(1.0, "fastv")]
    before = [row(stderr=0.5), row(90.0, ODD), row(90.0, "dense")]
    config = {"reading": "other"}
    return compare(save(folders[0], *now, config=CONFIG | config), save(folders[1], *before), USUAL)


@pytest.fixture
def noted(comparison: Comparison) -> Comparison:
    return replace(comparison, notes=("differs: reading",))


def test_the_table_has_every_row_and_says_how_it_was_judged(comparison: Comparison) -> None:
    table = to_table(comparison)
    assert len(table.rows) == 4
    assert table.rows[0] == (
        "corematching",
        "shapes",
        "accuracy",
        "90.00",
        "90.00 ± 0.50",
        "0.00",
        "same questions",
        OK,
    )
    assert table.rows[1][3:] == ("70.00 ± 1.00", "90.00", "20.00", "same questions", "REGRESSED")
    assert table.rows[3][3:] == ("1.00", "", "", "presence", "new")
    assert [note.partition(":")[0] for note in table.notes] == ["same questions", "presence"]
    assert to_csv(table).splitlines()[1] == "corematching,shapes,accuracy,90.0,,90.0,0.5,0.0,same questions,ok"
    assert "more than 1 points" in table.notes[0]


def test_every_rule_is_explained(folders) -> None:
    rows = [Compared(method="m", where="w", measure="x", now=None, baseline=None, rule=rule) for rule in RULES]
    notes = to_table(Comparison("tiny", tuple(rows), Limits(2.5, 1.5))).notes
    assert len(notes) == len(RULES)
    assert not [note for note in notes if "{" in note]


def test_markdown_has_a_line_for_each_row_and_the_summary(comparison: Comparison) -> None:
    lines = render(comparison, "markdown").splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    assert [len(one) for one in cells] == [8] * 6
    assert [one[-1].strip() for one in cells[2:]] == ["ok", "REGRESSED", "ok", "new"]
    assert "1 of 3 rows regressed: accuracy of a|b" in "\n".join(lines[-2:])


def parsed(command: str) -> tuple[str, str, str]:
    """Name, title and message of a workflow command, unescaped as the runner does."""
    name, title, message = re.fullmatch(r"::(\w+) title=([^:,\r\n]*)::([^\r\n]*)", command).groups()
    for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ",")):
        title = title.replace(code, char)
        message = message.replace(code, char) if char in "\r\n" else message
    return name, title.replace("%25", "%"), message.replace("%25", "%")


def test_github_gets_one_command_a_line(noted: Comparison) -> None:
    found = [parsed(line) for line in render(noted, "github").removesuffix("\n").split("\n")]
    name = f"accuracy of {ODD}, shapes"
    assert found == [
        ("error", name, f"{name} fell by 20.00 points, from 90.00 to 70.00"),
        ("warning", "coremat check", "differs: reading"),
        ("notice", "coremat check", f"1 of 3 rows regressed: {name}"),
    ]


def test_junit_is_xml_with_a_case_for_each_row(noted: Comparison) -> None:
    text = render(noted, "junit")
    assert text.startswith("<?xml")
    root = xml.fromstring(text.encode())
    [suite] = root
    for one in (root, suite):
        counts = [one.get(name) for name in ("tests", "failures", "errors", "skipped", "time")]
        assert counts == ["4", "1", "0", "1", "0"]
    cases = suite.findall("testcase")
    odd = ODD.replace("\x01", "?")
    assert [(case.get("classname"), case.get("name"), [part.tag for part in case]) for case in cases] == [
        ("corematching", "accuracy, shapes", []),
        (odd, "accuracy, shapes", ["failure"]),
        ("dense", "accuracy, shapes", []),
        ("fastv", "accuracy, shapes", ["skipped"]),
    ]
    failure = cases[1].find("failure")
    assert (failure.get("type"), failure.text) == ("regression", failure.get("message"))
    assert failure.text.endswith("fell by 20.00 points, from 90.00 to 70.00")
    assert suite.find("system-out").text.startswith("differs: reading\n1 of 3 rows regressed")


def test_another_form_is_refused(comparison: Comparison) -> None:
    with pytest.raises(UnknownNameError, match="'html'"):
        render(comparison, "html")
