"""A comparison as a table, and as what other programs read: GitHub's workflow commands and JUnit's XML."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from xml.etree import ElementTree as xml

from coremat.errors import UnknownNameError
from coremat.results.check.rows import (
    DROP_ALONE,
    FALL_ALONE,
    FLOOR,
    KL_ALONE,
    KL_PAIRED,
    KL_TWO_ERRORS,
    LEAST_RISE,
    MOST_FALL,
    MOST_RISE,
    NEW,
    PAIRED,
    PRESENCE,
    REGRESSED,
    SAME_QUESTIONS,
    SPREAD,
    TWO_ERRORS,
    Compared,
    Comparison,
    Measured,
)
from coremat.results.tables.eval import PROJECTED_NOTE, Column, Table, fixed, mark, to_markdown

ROSE = (
    f"a regression if it rose (a drop below 0) by more than {MOST_RISE:.0%} of the baseline's and {LEAST_RISE:g} nats"
)
RULES: Mapping[str, str] = {
    PAIRED: "a regression if it fell by more than {max_drop:g} points and the 95 % interval of the drop, question by "
    "question (in brackets), is above zero.",
    SAME_QUESTIONS: "a regression if it fell by more than {max_drop:g} points; both runs were asked the same "
    "questions, so which ones were drawn is no excuse.",
    TWO_ERRORS: "a regression if it fell by more than {max_drop:g} points and by more than 1.96 standard errors of a "
    "difference of independent runs.",
    DROP_ALONE: "a regression if it fell by more than {max_drop:g} points; a standard error is not known.",
    SPREAD: f"a regression if it fell by more than {MOST_FALL:.0%} and its range (10th to 90th percentile, run by "
    "run, in brackets) lies below the baseline's.",
    FALL_ALONE: f"a regression if it fell by more than {MOST_FALL:.0%}; there are no single runs.",
    FLOOR: "a regression if it is below {min_speedup:g}, dense of the same record being 1.",
    KL_PAIRED: f"{ROSE}, and the 95 % interval of the drop, question by question (in brackets), is below zero.",
    KL_TWO_ERRORS: f"{ROSE}, and by more than 1.96 standard errors of a difference of independent runs.",
    KL_ALONE: f"{ROSE}; a standard error is not known.",
    PRESENCE: "on one side only: a regression if that is the baseline's.",
}
HEADINGS = ("method", "on", "measure", "now", "baseline", "drop", "judged by", "verdict")
NUMERIC = ("now", "baseline", "drop")
RAW = ("method", "on", "measure", "now", "now_stderr", "baseline", "baseline_stderr", "drop", "judged_by", "verdict")
TITLE = "coremat check"
IN_MESSAGE = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
IN_PROPERTY = IN_MESSAGE | str.maketrans({":": "%3A", ",": "%2C"})
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


def to_table(comparison: Comparison) -> Table:
    """Row by row; below it what each kind of judgement means."""
    rules = dict.fromkeys(row.rule for row in comparison.rows)
    projected = any(one and one.projected for row in comparison.rows for one in (row.now, row.baseline))
    return Table(
        title=f"{comparison.model} against its baseline",
        columns=tuple(Column(name, numeric=name in NUMERIC) for name in HEADINGS),
        rows=tuple(_cells(row) for row in comparison.rows),
        raw_names=RAW,
        raw=tuple(_raw(row) for row in comparison.rows),
        notes=(
            *comparison.notes,
            *_own_scale_notes(comparison),
            *(f"{rule}: {RULES[rule].format(**asdict(comparison.limits))}" for rule in rules),
            *((PROJECTED_NOTE,) if projected else ()),
        ),
        section=None,
    )


def _own_scale_notes(comparison: Comparison) -> Iterator[str]:
    names = dict.fromkeys(f"{row.measure} of {row.where}" for row in comparison.rows if row.own_scale)
    if names:
        yield f"{', '.join(names)}: as lmms-eval gives it; a point is 1 % of the baseline's score."


def _cells(row: Compared) -> tuple[str, ...]:
    decimals = row.decimals
    drop = "" if row.drop is None else f"{fixed(row.drop, decimals)}{_range(row.interval, decimals)}"
    verdict = row.verdict.upper() if row.verdict == REGRESSED else row.verdict
    sides = (_number(one, decimals) for one in (row.now, row.baseline))
    return row.method, row.where, row.measure, *sides, drop, row.rule, verdict


def _number(measured: Measured | None, decimals: int) -> str:
    if measured is None:
        return ""
    error = "" if measured.stderr is None else f" ± {fixed(measured.stderr, decimals)}"
    return mark(f"{fixed(measured.value, decimals)}{error}{_range(measured.span, decimals)}", measured.projected)


def _range(ends: tuple[float, float] | None, decimals: int) -> str:
    return "" if ends is None else f" [{fixed(ends[0], decimals)}, {fixed(ends[1], decimals)}]"


def _raw(row: Compared) -> tuple[object, ...]:
    return row.method, row.where, row.measure, *_sides(row), row.drop, row.rule, row.verdict


def _sides(row: Compared) -> Iterator[object]:
    for one in (row.now, row.baseline):
        yield mark(one.value, one.projected) if one else None
        yield one.stderr if one else None


def render(comparison: Comparison, form: str) -> str:
    """The comparison as text in one of `FORMS`. UnknownNameError for another form."""
    if form not in FORMS:
        raise UnknownNameError("form of a comparison", form, FORMS)
    return FORMS[form](comparison)


def markdown(comparison: Comparison) -> str:
    """The table, and the summary below it."""
    return f"{to_markdown(to_table(comparison))}\n{comparison.summary}\n"


def github(comparison: Comparison) -> str:
    """A workflow command for each regression, and one for the summary: GitHub shows them beside the job."""
    lines = [_command("error", row.name, f"{row.name} {row.why}") for row in comparison.regressions]
    lines += [_command("warning", TITLE, note) for note in comparison.notes]
    return "\n".join([*lines, _command("notice", TITLE, comparison.summary)]) + "\n"


def _command(name: str, title: str, message: str) -> str:
    return f"::{name} title={title.translate(IN_PROPERTY)}::{message.translate(IN_MESSAGE)}"


def junit(comparison: Comparison) -> str:
    """A test case for each row; a row that is new is a skipped one."""
    counts = {
        "tests": len(comparison.rows),
        "failures": len(comparison.regressions),
        "errors": 0,
        "skipped": len(comparison.rows) - len(comparison.judged),
        "time": 0,
    }
    numbers = {name: str(count) for name, count in counts.items()}
    root = xml.Element("testsuites", {"name": TITLE, **numbers})
    suite = xml.SubElement(root, "testsuite", {"name": _clean(f"{TITLE} {comparison.model}"), **numbers})
    for row in comparison.rows:
        _test_case(suite, row)
    xml.SubElement(suite, "system-out").text = _clean("\n".join((*comparison.notes, comparison.summary)))
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, encoding="unicode") + "\n"


def _test_case(suite: xml.Element, row: Compared) -> None:
    names = {"classname": _clean(row.method), "name": _clean(f"{row.measure}, {row.where}"), "time": "0"}
    case = xml.SubElement(suite, "testcase", names)
    if row.verdict == REGRESSED:
        message = _clean(f"{row.name} {row.why}")
        xml.SubElement(case, "failure", {"message": message, "type": "regression"}).text = message
    if row.verdict == NEW:
        xml.SubElement(case, "skipped", {"message": "new: not in the baseline"})


def _clean(text: str) -> str:
    """Without what XML cannot hold."""
    return NOT_XML.sub("?", text)


FORMS: Mapping[str, Callable[[Comparison], str]] = {"markdown": markdown, "github": github, "junit": junit}
