"""The wheel holds what the tree holds, and works from another folder."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDED = (
    "coremat/models/shapes_llava/model.safetensors",
    "coremat/models/shapes_llava/config.json",
    "coremat/models/shapes_llava/tokenizer.json",
    "coremat/models/shapes_llava/chat_template.jinja",
    "coremat/models/smol_llava/adapter.safetensors",
    "coremat/models/smol_llava/config.json",
    "coremat/models/smol_llava/checksums.json",
    "coremat/models/smol_llava/chat_template.jinja",
    "coremat/models/configs/llava-1.5-7b.json",
    "coremat/models/method_support.json",
    "coremat/tasks/bundled/shapes/shapes.yaml",
    "coremat/tasks/bundled/shapes/data/test.parquet",
    "coremat/tasks/bundled/easyvqa/data/easyvqa.parquet",
    "coremat/tasks/bundled/easyvqa/data/LICENSE.easy-vqa.txt",
    "coremat/tasks/train_smol_llava/card.md",
    "coremat/results/paper/table1_neuron_keep_ratio.csv",
    "coremat/results/paper/table8_llama3_2_11b.csv",
    "coremat/cli/main.py",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("wheel") / "tree"
    skipped = shutil.ignore_patterns(".venv", ".git", "runs", "coremat-runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=skipped)
    build = (
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tree.parent,
        tree,
    )
    subprocess.run(build, check=True, capture_output=True)
    return next(tree.parent.glob("*.whl"))


def test_the_wheel_has_every_module_and_data_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in NEEDED if name not in names]
    folders = {"coremat": "coremat", "cli": "coremat/cli", "tasks": "coremat/tasks", "results": "coremat/results"}
    modules = {
        f"{target}/{path.relative_to(ROOT / folder)}"
        for folder, target in folders.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert not modules - names
    assert not [name for name in names if name.split("/")[0] in ("cli", "tasks", "results", "tests")]


def test_the_wheel_answers_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', str(f)).lower()]\n"
        "import coremat, coremat.models.load; assert coremat.__file__.startswith(sys.path[0]), coremat.__file__\n"
        "print(coremat.models.load.load('shapes-llava').prune_layer)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().isdigit()
