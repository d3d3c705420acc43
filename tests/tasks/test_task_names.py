"""Which tasks there are, and where lmms-eval's own are found."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from coremat.errors import UnknownNameError
from coremat.results.paper.printed import paper_table
from coremat.tasks.catalogue import GROUPS, TASKS, lmms_eval_tasks, resolve_task, resolve_tasks


@pytest.mark.parametrize("name", TASKS)
def test_a_named_task_has_its_yaml(name: str) -> None:
    info = resolve_task(name)
    assert info is TASKS[name]
    texts = [path.read_text() for path in info.folder.glob("*.yaml")]
    for task in info.tasks:
        assert any(re.search(rf"^task: [\"']?{task}[\"']?$", text, re.MULTILINE) for text in texts), task


@pytest.mark.parametrize("name", TASKS)
def test_its_metrics_are_those_of_the_yaml(name: str) -> None:
    """In the YAML itself or in what it includes, which stands beside it."""
    info = TASKS[name]
    texts = "".join(path.read_text() for path in info.folder.glob("*") if path.is_file())
    assert all(f"metric: {score.metric}" in texts for score in info.scores)


def test_the_columns_are_the_papers() -> None:
    for table in (2, 4, 5, 6, 8):
        named = {column for name in GROUPS[f"paper-table-{table}"] for column in TASKS[name].columns.values()}
        assert named == set(paper_table(table).tasks)
    assert set(paper_table(7).tasks) <= {column for task in TASKS.values() for column in task.columns.values()}


def test_a_group_stands_for_its_tasks_each_once() -> None:
    names = [task.name for task in resolve_tasks(["gqa", "paper-table-8", "shapes", "gqa"])]
    assert names == ["gqa", "textvqa", "mme", "vqav2", "vizwiz", "pope", "shapes"]


@pytest.mark.parametrize("name", ["pope_adv", "pope_full", "vqav2_val", "scienceqa_img", "mmbench_en_dev_static"])
def test_a_task_of_lmms_eval_is_found_in_its_folder(name: str) -> None:
    info = resolve_task(name)
    assert info.folder.is_dir()
    assert (info.scores, info.tasks) == ((), (name,))
    assert any(name in path.read_text() for path in info.folder.glob("*.yaml"))


def test_lmms_evals_own_task_of_a_name_that_both_have() -> None:
    info = resolve_task("lmms-eval:pope")
    assert (info.name, info.tasks, info.scores) == ("lmms-eval:pope", ("pope",), ())
    assert resolve_task("pope").tasks == ("pope_adv", "pope_pop", "pope_random")


@pytest.mark.parametrize("name", ["easyvqa", "shapes", "shapes_validation", "msvd_qa", "msrvtt_qa"])
def test_no_task_of_lmms_eval_has_the_name_of_one_that_is_written_here(name: str) -> None:
    """lmms-eval's own would win on its command line."""
    assert name not in lmms_eval_tasks()


@pytest.mark.parametrize(("name", "meant"), [("easy-vqa", "easyvqa"), ("shape", "shapes"), ("popee", "pope")])
def test_did_you_mean(name: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean '{meant}'"):
        resolve_task(name)


def test_looking_up_a_name_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from coremat.tasks.catalogue import resolve_task; resolve_task('pope'); import coremat; "
        "print([name for name in ('torch', 'lmms_eval', 'datasets', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
