"""`coremat data`: which datasets are there, and what is said where they can't be fetched."""

from pathlib import Path

import pandas
import pytest
from huggingface_hub import constants
from said import Run, refused

AI2D = "lmms-lab-encoder/ai2d"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """AI2D's test split in two files of one row, as the hub lays it out without a card."""
    folder = tmp_path / AI2D / "data"
    folder.mkdir(parents=True)
    for number in range(2):
        pandas.DataFrame({"question": ["?"]}).to_parquet(folder / f"test-0000{number}-of-00002.parquet")
    return tmp_path


def test_nothing_is_missing(run: Run, root: Path) -> None:
    code, out, err = run("data", "check", "--tasks", "ai2d", "--data-root", root)
    assert (code, err) == (0, "nothing is missing\n")
    assert "test 2" in out


def test_what_is_missing_is_in_the_table_and_in_the_exit_code(run: Run, root: Path) -> None:
    next(root.rglob("test-00001*")).unlink()
    code, out, err = run("data", "check", "--tasks", "ai2d,docvqa,shapes", "--data-root", root)
    assert code == 1
    assert "1 files of split test" in out
    assert "split validation of config" in out
    assert "shapes" not in out, "it brings its own data"
    assert err.split() == f"where there is a hub: coremat data fetch --tasks ai2d,docvqa --data-root {root}".split()


def test_a_folder_that_is_not_there_lacks_everything(run: Run, tmp_path: Path) -> None:
    assert run("data", "check", "--tasks", "pope", "--data-root", tmp_path / "no")[0] == 1


def test_an_evaluation_names_it_before_a_model_is_loaded(run: Run, root: Path) -> None:
    said = refused(run("eval", "--model", "no/model", "--tasks", "mme", "--data-root", root))
    assert said == (
        "error: task mme needs split test of lmms-lab-encoder/MME, 864 MB to fetch, which is not under "
        f"{root}; where there is a hub: coremat data fetch --tasks mme --data-root {root}"
    )
    said = refused(run("eval", "--tasks", "mme", "--data-root", root / "no"))
    assert "which is no folder; accepted: a folder with datasets in it." in said


def test_without_a_hub_fetching_ends_in_a_sentence(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refused(run("data", "fetch", "--tasks", "gqa", "--data-root", tmp_path))
    assert said.startswith("error: cannot fetch lmms-lab-encoder/GQA for task gqa: ")
    said = refused(run("data", "fetch", "--tasks", "msvd-qa", "--data-root", tmp_path))
    assert "has no dataset on a hub: put Video-LLaVA's evaluation data into" in said


def test_a_bad_name(run: Run, tmp_path: Path) -> None:
    assert "did you mean 'paper-table-2'" in refused(
        run("data", "check", "--tasks", "paper-table2", "--data-root", tmp_path)
    )
