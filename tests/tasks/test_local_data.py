"""Datasets from a folder: what is found of a hub's layouts, what is missing, what may be fetched."""

import socket
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
from mirrors import NAMES, write_mirrors

from coremat.errors import DataError
from coremat.tasks.catalogue import TASKS, resolve_tasks
from coremat.tasks.data.fetch import fetch, wanted
from coremat.tasks.data.local import files_of, local_datasets, missing, questions_there, require, shards_missing
from coremat.tasks.lmms_eval.load import load_task

CARD = """---
configs:
- config_name: one
  data_files:
  - split: test
    path: deep/part-*
- config_name: two
  data_files: all.csv
---
A dataset.
"""


def write(path: Path, rows: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame({"row": range(rows)}).to_parquet(path)
    return path


def test_files_as_the_card_lists_them(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    parts = [write(tmp_path / "deep" / f"part-{number}.parquet") for number in (1, 0)]
    (tmp_path / "all.csv").write_text("row\n0\n")
    assert files_of(tmp_path, "one") == {"test": sorted(parts)}
    assert files_of(tmp_path, "two") == {"train": [tmp_path / "all.csv"]}


def test_files_by_their_names_without_a_card(tmp_path: Path) -> None:
    first = write(tmp_path / "data" / "test-00000-of-00001.parquet")
    second = write(tmp_path / "small" / "test-00000-of-00001.parquet")
    assert files_of(tmp_path) == {"test": [first]}
    assert files_of(tmp_path, "small") == {"test": [second]}
    assert files_of(tmp_path, "large") == {}


def test_a_split_of_which_nothing_was_fetched_is_no_split(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD.replace("deep/part-*", "none/*"))
    assert files_of(tmp_path, "one") == {}


@pytest.mark.parametrize(("there", "lacking"), [((0, 1, 2), 0), ((0, 2), 1), ((1,), 2)])
def test_files_that_say_how_many_they_are(tmp_path: Path, there: tuple[int, ...], lacking: int) -> None:
    files = [write(tmp_path / "a" / "b" / "data" / f"test-0000{number}-of-00003.parquet") for number in there]
    assert shards_missing(files) == lacking
    with local_datasets(tmp_path):
        if lacking:
            with pytest.raises(DataError, match=f"{lacking} files of split test of the dataset a/b are not under"):
                datasets.load_dataset("a/b")
        else:
            assert datasets.load_dataset("a/b", split="test").num_rows == 3


def test_only_the_splits_that_are_asked_are_loaded(tmp_path: Path) -> None:
    """What else is there may be large, or there in part."""
    write(tmp_path / "a" / "b" / "data" / "test-00000-of-00001.parquet", rows=2)
    write(tmp_path / "a" / "b" / "data" / "train-00000-of-00007.parquet")
    with local_datasets(tmp_path, ["test"]):
        assert datasets.load_dataset("a/b").num_rows == {"test": 2}


def test_what_is_not_there_is_never_looked_for_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was reached for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with (
        local_datasets(tmp_path),
        pytest.raises(DataError, match="no files of its config small of the dataset a/b under"),
    ):
        datasets.load_dataset("a/b", "small")


def test_load_dataset_is_itself_again(tmp_path: Path) -> None:
    before = datasets.load_dataset
    with pytest.raises(KeyError), local_datasets(tmp_path):
        raise KeyError
    assert datasets.load_dataset is before


def test_each_dataset_is_missed_until_it_is_there(tmp_path: Path) -> None:
    for name in NAMES:
        task = TASKS[name]
        assert [one.task for one in missing(tmp_path, [task])] == [task]
        write_mirrors(tmp_path, [name])
        assert missing(tmp_path, [task]) == []
        assert name.startswith("ms") or sum(questions_there(tmp_path, task).values()) > 0


def test_archives_of_videos_that_are_still_packed(tmp_path: Path) -> None:
    write_mirrors(tmp_path, ["activitynet-qa"])
    folder = tmp_path / "lmms-eval/ActivityNetQA/all_test"
    for video in folder.iterdir():
        video.unlink()
    (folder / "v1.zip").write_bytes(b"")
    [lacking] = missing(tmp_path, [TASKS["activitynet-qa"]])
    assert lacking.parts == ("the videos (unpack the archives there)",)


def test_the_first_that_is_missing_is_named_with_size_and_command(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        require(tmp_path, resolve_tasks(["chartqa", "ai2d"]))
    assert str(caught.value) == (
        f"task chartqa needs split test of lmms-lab-encoder/ChartQA, 72.6 MB to fetch, which is not under {tmp_path}; "
        f"where there is a hub: coremat data fetch --tasks chartqa --data-root {tmp_path} (1 more: coremat data check)"
    )


def test_a_dataset_of_another_task_of_lmms_eval_is_named_when_it_is_loaded(tmp_path: Path) -> None:
    [info] = resolve_tasks(["gqa_lite"])
    with pytest.raises(DataError, match="no files of its config gqa of the dataset lmms-lab-encoder/LMMs-Eval-Lite"):
        load_task(info, None, tmp_path)


def test_only_the_splits_that_are_asked_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted(TASKS["vqav2"]) == ["README.md", "*validation-*"]
    assert wanted(TASKS["gqa"]) == [
        "README.md",
        "testdev_balanced_instructions/*testdev-*",
        "testdev_balanced_images/*testdev-*",
    ]
    assert wanted(TASKS["activitynet-qa"]) == ["*"]
    asked: list[Any] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: asked.append((a, k)))
    assert fetch(tmp_path, TASKS["pope"]) == tmp_path / "lmms-lab-encoder/POPE"
    assert fetch(tmp_path, TASKS["shapes"]) is None
    [(names, options)] = asked
    assert names == ("lmms-lab-encoder/POPE",)
    assert options["allow_patterns"] == ["README.md", "Full/*adversarial-*", "Full/*popular-*", "Full/*random-*"]
    assert (options["repo_type"], options["local_dir"]) == ("dataset", tmp_path / "lmms-lab-encoder/POPE")


def test_fetched_archives_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TASKS["activitynet-qa"]
    folder = tmp_path / "lmms-eval/ActivityNetQA"

    def bring(*_: Any, **__: Any) -> None:
        write_mirrors(tmp_path, [task.name])
        with zipfile.ZipFile(folder / "v1.zip", "w") as archive:
            for video in (folder / "all_test").iterdir():
                archive.write(video, f"v1/{video.name}")
                video.unlink()

    monkeypatch.setattr("huggingface_hub.snapshot_download", bring)
    fetch(tmp_path, task)
    assert missing(tmp_path, [task]) == []
    (folder / "v2.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cannot unpack .*v2\.zip"):
        fetch(tmp_path, task)
