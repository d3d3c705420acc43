"""Datasets from local copies, laid out as on the hub: `ROOT/<hub id>/` with its card and its files, or parts of them.

`local_datasets` serves them to lmms-eval's tasks, which ask `datasets.load_dataset` for a hub id, and lets nothing
reach the network. `missing` says before a run what is not there; `fetching` brings it for those who have a hub.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from coremat.errors import DataError
from coremat.tasks.bundled.video_qa.data import OWN_DATASETS
from coremat.tasks.catalogue import Data, TaskInfo

BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
CARD = "README.md"
VIDEOS = ("*.mp4", "*.webm", "*.mkv", "*.avi", "*.mov")
ARCHIVES = ("*.zip", "*.tar*")


@dataclass(frozen=True)
class Missing:
    """What a task needs and has not: its dataset, and which parts of it."""

    task: TaskInfo
    data: Data
    parts: tuple[str, ...]

    def sentence(self, root: Path) -> str:
        size = f", {self.data.readable_size} to fetch" if self.data.size else ""
        parts = ", ".join(self.parts)
        return (
            f"task {self.task.name} needs {parts} of {self.data.path}{size}, which is not under {root}; "
            f"where there is a hub: coremat data fetch --tasks {self.task.name} --data-root {root}"
        )


# --- serving ---------------------------------------------------------------------------------------------


@contextmanager
def local_datasets(root: Path | None, splits: Sequence[str] = ()) -> Iterator[None]:
    """While this lasts, `datasets.load_dataset` finds hub ids under `root` and nowhere else; None changes nothing.

    splits: all that is loaded of each dataset, however much of it is there; none named: everything. It must be entered
    before a task is loaded: lmms-eval's modules take the function over by name. Files and builders that a YAML names by
    path are no hub ids, and stay what they are.
    """
    import datasets

    if root is None:
        yield
        return
    everywhere = datasets.load_dataset

    def load(path: str, name: str | None = None, *args: Any, **options: Any) -> Any:
        if path in BUILDERS.values() or Path(path).is_absolute():
            return everywhere(path, name, *args, **options)
        return _load(everywhere, root, path, name or "", options.get("split"), splits)

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset = everywhere


def _load(everywhere: Any, root: Path, path: str, config: str, split: str | None, splits: Sequence[str]) -> Any:
    folder = root / path
    if path in OWN_DATASETS:
        return OWN_DATASETS[path](folder)
    files = {name: found for name, found in files_of(folder, config).items() if not splits or name in splits}
    if not files:
        part = f" of its config {config}" if config else ""
        raise DataError(f"there are no files{part} of the dataset {path} under {root}")
    for split_name, found in files.items():
        if lacking := shards_missing(found):
            raise DataError(f"{lacking} files of split {split_name} of the dataset {path} are not under {root}")
    builder = BUILDERS[next(iter(files.values()))[0].suffix]
    named = {name: [str(file) for file in found] for name, found in files.items()}
    return everywhere(builder, data_files=named, split=split)


def files_of(folder: Path, config: str = "") -> dict[str, list[Path]]:
    """The data files that are there, by split: as the dataset's card lists them, or by their names without one.

    config "": the only one, or the default. Splits of which nothing was fetched are left out.
    """
    patterns = _patterns(folder, config) or {
        split: f"{place}/{split}-*" for place in (config or "data",) for split in _splits(folder / place)
    }
    found = {
        split: sorted(file for one in _as_list(pattern) for file in folder.glob(one) if file.suffix in BUILDERS)
        for split, pattern in patterns.items()
    }
    return {split: files for split, files in found.items() if files}


def _patterns(folder: Path, config: str) -> dict[str, Any]:
    """The patterns of a config's splits in the card, as hubs write them into its head."""
    card = folder / CARD
    head = card.read_text(encoding="utf-8").split("---") if card.is_file() else []
    meta = yaml.safe_load(head[1]) if len(head) > 2 else None
    configs = meta.get("configs", []) if isinstance(meta, dict) else []
    for one in configs:
        if one.get("config_name", "default") == (config or "default") or (not config and len(configs) == 1):
            files = one.get("data_files", [])
            return {"train": files} if isinstance(files, str) else {f["split"]: f["path"] for f in files}
    return {}


def _as_list(pattern: Any) -> list[str]:
    return [pattern] if isinstance(pattern, str) else list(pattern)


def _splits(folder: Path) -> list[str]:
    return sorted({file.name.rsplit("-of-", 1)[0].rsplit("-", 1)[0] for file in folder.glob("*-of-*")})


def videos_of(folder: Path) -> dict[str, Path]:
    """The video files anywhere under a dataset's folder, by name without ending."""
    return {file.stem: file for kind in VIDEOS for file in folder.rglob(kind)}


# --- what is there ---------------------------------------------------------------------------------------


def missing(root: Path, tasks: Iterable[TaskInfo]) -> list[Missing]:
    """What is not under `root` of all that these tasks need, task by task."""
    needed = ((task, task.data, tuple(_missing_parts(root, task, task.data))) for task in tasks if task.data)
    return [Missing(task, data, parts) for task, data, parts in needed if parts]


def _missing_parts(root: Path, task: TaskInfo, data: Data) -> Iterator[str]:
    folder = root / data.path
    if data.path in OWN_DATASETS:
        yield from (name for name in ("test_q.json", "test_a.json") if not (folder / name).is_file())
    else:
        yield from _missing_splits(folder, data)
    if task.video and not videos_of(folder):
        packed = any(file for kind in ARCHIVES for file in folder.rglob(kind))
        yield "the videos (unpack the archives there)" if packed else "the videos"


def _missing_splits(folder: Path, data: Data) -> Iterator[str]:
    for config in data.configs:
        there = files_of(folder, config)
        for split in data.splits:
            files = there.get(split, [])
            lacking = shards_missing(files)
            if lacking or not files:
                count = f"{lacking} files of " if lacking else ""
                yield f"{count}split {split}" + (f" of config {config}" if config else "")


def shards_missing(files: Sequence[Path]) -> int:
    """How many are not there of a split whose files say how many they are: `test-00000-of-00003.parquet`."""
    totals = [int(file.stem.rpartition("-of-")[2]) for file in files if file.stem.rpartition("-of-")[2].isdecimal()]
    return max(0, max(totals, default=0) - len(files))


def require(root: Path, tasks: Sequence[TaskInfo]) -> None:
    """DataError with one sentence on the first thing that is missing, and how many more there are."""
    if not root.is_dir():
        raise DataError(f"--data-root is {str(root)!r}, which is no folder; accepted: a folder with datasets in it.")
    lacking = missing(root, tasks)
    if lacking:
        rest = f" ({len(lacking) - 1} more: coremat data check)" if len(lacking) > 1 else ""
        raise DataError(lacking[0].sentence(root) + rest)


def questions_there(root: Path, task: TaskInfo) -> Mapping[str, int]:
    """Rows of each split that lies under `root`, read off the files' heads."""
    import pyarrow.parquet as parquet

    if task.data is None:
        return {}
    counts: dict[str, int] = {}
    for split, files in files_of(root / task.data.path, task.data.configs[0]).items():
        if split in task.data.splits and all(file.suffix == ".parquet" for file in files):
            counts[split] = sum(parquet.read_metadata(file).num_rows for file in files)
    return counts
