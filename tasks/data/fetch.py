"""Bringing datasets from the hub into a folder of local copies: only the splits that a task asks."""

import shutil
from pathlib import Path

from coremat.errors import DataError, OutputError
from coremat.tasks.bundled.video_qa.data import OWN_DATASETS
from coremat.tasks.catalogue import TaskInfo
from coremat.tasks.data.hub import access_advice
from coremat.tasks.data.local import ARCHIVES, CARD


def fetch(root: Path, task: TaskInfo) -> Path | None:
    """Bring what is missing of a task's dataset into `root`; where it lies, None if the task brings its own data.

    DataError where the hub can't be reached or does not have it; OutputError where it cannot be written.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if task.data is None:
        return None
    data, folder = task.data, root / task.data.path
    if data.path in OWN_DATASETS:
        raise DataError(
            f"task {task.name} has no dataset on a hub: put Video-LLaVA's evaluation data into {folder} "
            "(test_q.json, test_a.json, videos/)"
        )
    try:
        snapshot_download(data.path, repo_type="dataset", local_dir=folder, allow_patterns=wanted(task))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        advice = access_advice(data.path, error)
        raise DataError(f"cannot fetch {data.path} for task {task.name}: {reason}{advice}") from error
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    if task.video:
        unpack(folder)
    return folder


def wanted(task: TaskInfo) -> list[str]:
    """Patterns of the files of a task's dataset: all where there are videos, otherwise the splits that are asked."""
    if task.data is None or task.video:
        return ["*"]
    splits = [f"*{split}-*" for split in task.data.splits]
    places = [f"{config}/" if config else "" for config in task.data.configs]
    return [CARD, *(place + split for place in places for split in splits)]


def unpack(folder: Path) -> None:
    """Unpack the archives of videos where they lie."""
    for kind in ARCHIVES:
        for archive in sorted(folder.rglob(kind)):
            try:
                shutil.unpack_archive(archive, folder, filter=None if archive.suffix == ".zip" else "data")
            except (shutil.ReadError, ValueError) as error:
                raise DataError(f"cannot unpack {archive}: {error}") from error
