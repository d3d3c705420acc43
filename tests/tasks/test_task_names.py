"""Which tasks there are, and where lmms-eval's own are found."""

import subprocess
import sys
from pathlib import Path

import pytest

from coremat.errors import UnknownNameError
from coremat.tasks import TASKS, lmms_eval_tasks, resolve_task


@pytest.mark.parametrize("name", TASKS)
def test_a_bundled_task_has_its_yaml(name: str) -> None:
    info = resolve_task(name)
    assert info is TASKS[name]
    assert f"task: {name}\n" in (info.folder / f"{name}.yaml").read_text()


@pytest.mark.parametrize(
    "name", ["pope", "pope_full", "gqa", "mme", "vqav2_val", "scienceqa_img", "mmbench_en_dev_static"]
)
def test_a_task_of_lmms_eval_is_found_in_its_folder(name: str) -> None:
    info = resolve_task(name)
    assert info.folder.is_dir()
    assert info.metrics == ()
    assert any(name in path.read_text() for path in info.folder.glob("*.yaml"))


def test_no_task_of_lmms_eval_has_the_name_of_a_bundled_one() -> None:
    """lmms-eval's own would win on its command line."""
    assert not set(TASKS) & set(lmms_eval_tasks())


@pytest.mark.parametrize(("name", "meant"), [("easy-vqa", "easyvqa"), ("shape", "shapes"), ("popee", "pope")])
def test_did_you_mean(name: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean '{meant}'"):
        resolve_task(name)


def test_looking_up_a_name_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from coremat.tasks import resolve_task; resolve_task('pope'); import coremat; "
        "print([name for name in ('torch', 'lmms_eval', 'datasets', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
