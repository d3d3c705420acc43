"""From a task's name to lmms-eval's task with its data: with the paper's protocol, from the hub or a local copy."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from coremat.errors import ConfigError, CorematError, DataError, UnsupportedError, first_sentence
from coremat.tasks.catalogue import TASKS, TaskInfo
from coremat.tasks.data.hub import access_advice, without_account
from coremat.tasks.data.local import local_datasets
from coremat.tasks.judge.scoring import loadable
from coremat.tasks.prompts import changes


@dataclass(frozen=True)
class LoadedTask:
    """An lmms-eval task with its data, and how many of its questions are asked."""

    info: TaskInfo
    name: str
    task: Any
    size: int
    manager: Any

    @cached_property
    def docs(self) -> Any:
        """The questions without their images."""
        return self.task.eval_docs_no_media


def load_task(info: TaskInfo, limit: int | float | None, data_root: Path | None = None) -> list[LoadedTask]:
    """lmms-eval's tasks behind a name. Only the task's own folder is indexed: all of lmms-eval's takes 7 s.

    DataError for a dataset that is not there, UnsupportedError for a task that is not answered by generating.
    """
    from lmms_eval.evaluator_utils import get_task_list
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=[str(info.folder)], include_defaults=False, model_name="coremat")
    try:
        splits = info.data.splits if info.data else ()
        with (
            without_account(),
            local_datasets(data_root, splits),
            loadable(),
            _fetching_once(info),
            _first_image_unseen(),
        ):
            asked = [_asked(info, name, data_root) for name in info.tasks]
            found = get_task_list(manager.load_task_or_group(asked, "chat"))
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"task {info.name} needs the Python module {error.name}, which is missing") from error
    for output in found:
        if output.task.OUTPUT_TYPE != "generate_until":
            raise UnsupportedError(f"task {output.task_name} is of type {output.task.OUTPUT_TYPE}, not generate_until")
    sizes = [limited(len(one.task.eval_docs), limit, info.together) for one in found]
    return [LoadedTask(info, one.task_name, one.task, size, manager) for one, size in zip(found, sizes, strict=True)]


def _asked(info: TaskInfo, task: str, data_root: Path | None) -> str | dict[str, Any]:
    """What lmms-eval is to load. The protocol belongs to the paper's names; lmms-eval's own stay as they are."""
    changed = changes(task, data_root) if info.name in TASKS else {}
    return {"task": task, **changed} if changed else task


@contextmanager
def _fetching_once(info: TaskInfo) -> Iterator[None]:
    """A dataset that can't be had is said at once: lmms-eval would try five times, and then tell of its tries."""
    from lmms_eval.api.task import ConfigurableTask

    patient = ConfigurableTask.download

    def download(task: Any, dataset_kwargs: Any = None) -> None:
        try:
            patient.__wrapped__(task, dataset_kwargs)
        except CorematError:
            raise
        except Exception as error:
            raise DataError(_not_here(info, task.DATASET_PATH, error)) from error

    ConfigurableTask.download = download
    try:
        yield
    finally:
        ConfigurableTask.download = patient


@contextmanager
def _first_image_unseen() -> Iterator[None]:
    """lmms-eval looks at a task's first question as it loads it; a broken image there is none before it is asked."""
    from datasets import Image

    from coremat.tasks.lmms_eval.model import NOT_DECODED, UNREADABLE

    decode = Image.decode_example

    def lenient(feature: Any, value: Any, *args: Any, **options: Any) -> Any:
        try:
            return decode(feature, value, *args, **options)
        except UNREADABLE + NOT_DECODED:
            return None

    Image.decode_example = lenient
    try:
        yield
    finally:
        Image.decode_example = decode


def _not_here(info: TaskInfo, dataset: str, error: Exception) -> str:
    size = f" ({info.data.readable_size})" if info.data and info.data.size else ""
    elsewhere = f"; with a hub: coremat data fetch --tasks {info.name} --data-root DIR" if info.data else ""
    advice = access_advice(dataset, error) or elsewhere
    needed = f"task {info.name} needs the dataset {dataset}{size}"
    return f"{needed}, which is not here and can't be fetched: {first_sentence(error)}{advice}"


def check_limit(limit: int | float | None) -> None:
    if limit is None or 0 < limit < 1 or (limit >= 1 and limit == int(limit)):
        return
    raise ConfigError(f"limit is {limit!r}; accepted: a whole number of questions, or a share of them below 1")


def limited(size: int, limit: int | float | None, together: int = 1) -> int:
    """How many of `size` questions are asked: a share is rounded up, task by task, and what is scored as one kept."""
    if limit is None:
        return size
    wanted = math.ceil(size * limit) if limit < 1 else int(limit)
    return min(size, math.ceil(wanted / together) * together)
