"""`coremat table N --record DIR` with an ordinary record of an evaluation, whose rows go by lmms-eval's names."""

from dataclasses import replace
from pathlib import Path

import pytest
from said import Run

from coremat.cli.table import FORMATS, paper_columns
from coremat.results.record.eval import Record, Row
from coremat.tasks.catalogue import TASKS

ROW = Row(method="corematching", task="gqa", metric="exact_match", score=60.0, samples=7, image_tokens_kept=64)
METHODS = {
    name: {"name": name, "options": {}, "shortens": {"tokens": name == "corematching", "neurons": True}}
    for name in ("corematching", "core-neurons")
}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Every metric of every task, as `tasks.rows` names them."""
    names = [
        (name, score.metric)
        for task in TASKS.values()
        for name in dict.fromkeys((*([task.name] if len(task.tasks) > 1 else []), *task.tasks))
        for score in task.scores
    ]
    rows = [replace(ROW, method=method, task=task, metric=metric) for method in METHODS for task, metric in names]
    Record("llava-1.5-7b", tuple(rows), {"methods": METHODS}).write(tmp_path)
    return tmp_path


def test_every_metric_of_the_catalogue_has_its_column() -> None:
    columns = paper_columns()
    assert columns["vqav2_val", "exact_match"] == columns["vqav2", "exact_match"] == "vqav2"
    assert columns["pope", "pope_f1_score"] == "pope"
    assert columns["activitynetqa", "gpt_eval_score"] == "activitynet_score"
    assert not {("pope_adv", "pope_f1_score"), ("pope", "pope_accuracy"), ("mme", "mme_cognition_score")} & set(columns)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("number", range(1, 9))
def test_every_table_takes_the_record(run: Run, record: Path, number: int, form: str) -> None:
    code, out, err = run("table", number, "--record", record, "--format", form)
    assert (code, err) == (0, "")
    assert ("measured" in out.replace("measured samples", "")) == (number != 3)
    assert ("difference" in out) == (number in (2, 4, 7))  # the model and the method of the paper are in these


def test_cells_of_table_7(run: Run, record: Path) -> None:
    _, out, _ = run("table", 7, "--record", record, "--format", "csv")
    assert out.splitlines()[-2:] == [
        "measured,llava-1.5-7b,corematching" + ",64" * 8,
        "difference,llava-1.5-7b,corematching,36.1,0.5,-12.6,-12.9,-0.1,-7.1,-2.9,-29.9",
    ]
