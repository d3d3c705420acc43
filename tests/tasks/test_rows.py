"""From journalled lines to a record's rows."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from coremat.results.statistics import standard_error
from coremat.tasks.catalogue import PERCENT, POINTS, Score, TaskInfo
from coremat.tasks.run.costs import COSTS
from coremat.tasks.run.rows import MEDIANS, Metric, find_metrics, make_rows, means_of_tasks, own_scales


def make_line(method: str, doc: int, answer: str, scores: dict[str, float], **values: Any) -> dict[str, Any]:
    figures = dict.fromkeys((*COSTS, *MEDIANS), 1.0) | values
    return {"method": method, "task": "t", "doc_id": doc, "answer": answer, "scores": scores, **figures}


LINES = [
    make_line("dense", 0, "a", {"accuracy": 1.0}, first_token_ms=1.0, image_tokens_kept=10),
    make_line("dense", 1, "b", {"accuracy": 0.0, "f1": 0.5}, first_token_ms=2.0, image_tokens_kept=20),
    make_line("dense", 2, "c", {"accuracy": 1.0, "f1": 1.0}, first_token_ms=9.0, image_tokens_kept=60),
    make_line("core", 0, "a", {"accuracy": 1.0}, decode_ms_per_token=None),
    make_line("core", 1, "x", {"accuracy": 0.0, "f1": 0.0}, decode_ms_per_token=4.0),
    make_line("core", 2, "C", {"accuracy": 1.0, "f1": 1.0}, decode_ms_per_token=6.0),
]


def test_means_medians_errors_and_agreement() -> None:
    dense, core = make_rows(LINES, [Metric(m, ("t",), "t", "accuracy", 2 / 3, 100.0) for m in ("dense", "core")])
    assert (dense.score, dense.samples) == (pytest.approx(200 / 3), 3)
    assert dense.stderr == pytest.approx(100 * standard_error([1, 0, 1]))
    assert (dense.image_tokens_kept, dense.first_token_ms) == (30, 2.0)
    assert core.decode_ms_per_token == 5.0
    assert (dense.agreement_with_dense, core.agreement_with_dense) == (100, pytest.approx(100 / 3))


# Of ten questions: dense gets the first six right, the smaller picture 0, 1 and 9; so 2 to 5 are hard.
SCORES = {
    "dense": [1, 1, 1, 1, 1, 1, 0, 0, 0, 0.5],
    "small": [1, 1, 0, 0.5, 0, 0.9, 0, 0, 0, 1],
    "core": [1, 0, 1, 0.5, 0, 1, 1, 1, 1, 1],
}


def hard_rows(
    scores: dict[str, list[float]], downsampled: str | None, scale: float | None = 100.0, factor: float = 1.0
) -> list[tuple[float | None, float | None]]:
    lines = [make_line(m, doc, "a", {"f1": value}) for m, own in scores.items() for doc, value in enumerate(own)]
    metrics = [Metric(method, ("t",), "t", "f1", factor * fmean(own), scale) for method, own in scores.items()]
    return [(row.hard_score, row.hard_samples) for row in make_rows(lines, metrics, downsampled)]


def test_hard_questions_are_those_that_dense_gets_right_and_a_smaller_picture_wrong() -> None:
    dense, small, core = hard_rows(SCORES, "small")
    assert dense == (100, 4)
    assert small == (pytest.approx(100 * (0 + 0.5 + 0 + 0.9) / 4), 4)
    assert core == (pytest.approx(100 * (1 + 0.5 + 0 + 1) / 4), 4)


def test_what_is_in_per_cent_already_is_divided_too() -> None:
    assert hard_rows(SCORES, "small", scale=1.0, factor=100.0) == hard_rows(SCORES, "small")


@pytest.mark.parametrize(
    ("scores", "downsampled", "scale", "factor"),
    [
        (SCORES, None, 100.0, 1.0),
        (SCORES, "absent", 100.0, 1.0),
        ({method: own for method, own in SCORES.items() if method != "dense"}, "small", 100.0, 1.0),
        (SCORES, "small", 1.0, 1.0),  # points, which have no full score
        (SCORES, "small", None, 1.0),  # a scale of lmms-eval's own
        (SCORES, "small", 100.0, 1.25),  # no mean of the questions' scores
    ],
)
def test_without_both_or_a_full_score_no_question_is_hard(
    scores: dict[str, list[float]], downsampled: str | None, scale: float | None, factor: float
) -> None:
    assert set(hard_rows(scores, downsampled, scale, factor)) == {(None, None)}


def test_where_the_smaller_picture_suffices_there_are_no_hard_questions() -> None:
    assert hard_rows({**SCORES, "small": [1] * 10}, "small") == [(None, 0)] * 3


def test_the_mean_of_several_tasks_divides_nothing() -> None:
    lines = [make_line(m, doc, "a", {"f1": v}) for m, own in SCORES.items() for doc, v in enumerate(own)]
    metrics = [Metric(m, ("t", "u"), "both", "f1", fmean(own), 100.0) for m, own in SCORES.items()]
    assert {row.hard_score for row in make_rows(lines, metrics, "small")} == {None}


def test_a_metric_of_some_questions_counts_only_those() -> None:
    (row,) = make_rows(LINES, [Metric("dense", ("t",), "t", "f1", 0.75, 100.0)])
    assert (row.samples, row.score, row.image_tokens_kept) == (2, 75, 40)


def test_without_dense_there_is_no_agreement() -> None:
    (row,) = make_rows(LINES[3:], [Metric("core", ("t",), "t", "accuracy", 2 / 3, 100.0)])
    assert row.agreement_with_dense is None


def test_a_score_that_is_no_mean_has_no_error_of_a_mean() -> None:
    (row,) = make_rows(LINES, [Metric("dense", ("t",), "t", "accuracy", 0.9, 100.0)])
    assert (row.score, row.stderr) == (90, None)


def test_a_score_that_is_not_per_sample_is_of_all_samples() -> None:
    (row,) = make_rows(LINES, [Metric("dense", ("t",), "t", "perception", 1500.0, 1.0)])
    assert (row.score, row.stderr, row.samples) == (1500, None, 3)


def test_metrics_are_found_under_their_filters() -> None:
    results = {
        "alias": "t",
        "exact_match,flexible-extract": 0.5,
        "exact_match_stderr,flexible-extract": "N/A",
        "exact_match,strict": 0.25,
        "points,none": 63.5,
        "submission,none": None,
        "other,none": [],
    }
    names = ("exact_match", "points", "submission", "other", "alias", "absent")
    found = find_metrics("dense", "t", names, results)
    assert found == [
        Metric("dense", ("t",), "t", "exact_match", 0.5, None),
        Metric("dense", ("t",), "t", "points", 63.5, None),
    ]


@pytest.mark.parametrize(
    ("task", "metric", "scale"),
    [
        ("vqav2_val", "exact_match", PERCENT),
        ("pope_adv", "pope_f1_score", PERCENT),
        ("mme", "mme_perception_score", POINTS),
        ("coco2017_cap_val", "coco_CIDEr", None),
        ("vqav2_val", "another", None),
    ],
)
def test_a_scale_is_the_catalogues_whatever_the_value(task: str, metric: str, scale: float | None) -> None:
    for value in (0.0, 0.96, 1.1, 63.5):
        (found,) = find_metrics("dense", task, [metric], {f"{metric},none": value})
        assert (found.value, found.scale) == (value, scale)


def test_what_the_catalogue_does_not_describe_is_on_one_scale_for_all_methods() -> None:
    lines = [
        make_line(method, doc, "a", {"cider": value})
        for method, values in (("dense", (1.0, 1.2)), ("core", (0.95, 0.97)))
        for doc, value in enumerate(values)
    ]
    aggregated = {"dense": 1.1, "core": 0.96}
    metrics = [one for m, value in aggregated.items() for one in find_metrics(m, "t", ["cider"], {"cider,none": value})]
    dense, core = make_rows(lines, metrics)
    assert (dense.score, core.score) == (pytest.approx(1.1), pytest.approx(0.96))
    assert (dense.stderr, core.stderr) == (pytest.approx(0.1), pytest.approx(0.01))
    assert own_scales([*metrics, Metric("dense", ("u",), "u", "accuracy", 0.5, 100.0)]) == {"t": ["cider"]}


def test_a_name_for_several_tasks_has_their_mean_first() -> None:
    info = TaskInfo("both", "", Path(), ("t", "u"), (Score("accuracy"), Score("absent")))
    parts = [[Metric("dense", (task,), task, "accuracy", value, 100.0)] for task, value in (("t", 2 / 3), ("u", 0.0))]
    metrics = means_of_tasks([(info, one) for one in parts])
    assert [(one.task, one.value) for one in metrics] == [("both", pytest.approx(1 / 3)), ("t", 2 / 3), ("u", 0.0)]
    lines = [*LINES[:3], {**LINES[0], "task": "u", "scores": {"accuracy": 0.0}, "image_tokens": 100}]
    mean, first, second = make_rows(lines, metrics)
    assert (mean.task, mean.samples, first.samples, second.samples) == ("both", 4, 3, 1)
    assert mean.image_tokens == pytest.approx(fmean(line["image_tokens"] for line in lines))
    assert mean.stderr is None, "the mean of the tasks is not that of the samples"


def test_a_broken_sample_has_a_score_and_no_costs() -> None:
    broken = {**{key: LINES[0][key] for key in ("method", "task", "doc_id", "answer")}, "scores": {"accuracy": 0.0}}
    (row,) = make_rows([*LINES[1:3], broken], [Metric("dense", ("t",), "t", "accuracy", 1 / 3, 100.0)])
    assert row.samples == 3
    assert row.image_tokens == fmean(line["image_tokens"] for line in LINES[1:3])
    broken |= {"broken": "no image", "answer": ""}
    (_, row) = make_rows(
        [*LINES[1:3], broken, *LINES[4:], broken | {"method": "core"}],
        [Metric(method, ("t",), "t", "accuracy", 1 / 3, 100.0) for method in ("dense", "core")],
    )
    assert row.agreement_with_dense == 0, "x is not b and C not c; that neither could be asked is no agreement"
