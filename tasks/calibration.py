"""The prompts that a method is calibrated on: of tasks, and of a file of one's own.

Of a task not those that it is scored on, where it has others: shapes gives its validation split, easyvqa the training
split of the package that it comes from, any other task a training or validation split that is loaded with it. A task
that has none gives its last questions, and the description says so.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from coremat.errors import UnsupportedError
from coremat.generate import Conversation
from coremat.models.load import LoadedModel
from coremat.preprocessing.images import whole_images
from coremat.preprocessing.prompt_format import Preprocessing
from coremat.tasks.catalogue import TaskInfo
from coremat.tasks.digest import digest
from coremat.tasks.lmms_eval.load import LoadedTask, load_task
from coremat.tasks.prompt_file import asked, conversation_of_row, prompt_lines, prompt_row

VALIDATED_BY = {"shapes": "shapes_validation"}
OTHER_SPLITS = ("train", "val", "dev")  # what the names of splits begin with that are not scored, best first


@dataclass
class Prompts:
    """count: how many there are at most; about: what they are, plain JSON. They are made one at a time, once; `digest`
    is then the hash of all, in their order."""

    count: int
    about: list[dict[str, Any]]
    made: Iterable[Conversation]
    digest: str = field(default="", init=False)

    def __iter__(self) -> Iterator[Conversation]:
        for conversation in self.made:
            self.digest = digest(self.digest, conversation)
            yield conversation


# --- a file of one's own ----------------------------------------------------------------------------------------------


def prompts_of_file(path: Path, limit: int, preprocessing: Preprocessing) -> Prompts:
    """The first `limit` lines: {"question": ..., "image": a path from the file's folder, or left out}.

    DataError for a line that is something else, or an image that cannot be read, when its turn comes.
    """
    rows = [prompt_row(path, number, line) for number, line in prompt_lines(path)[:limit]]
    made = (conversation_of_row(path.parent, row, preprocessing) for row in rows)
    return Prompts(len(rows), [{"prompts": path.name, "count": len(rows)}], made)


# --- tasks ------------------------------------------------------------------------------------------------------------


def prompts_of_tasks(
    infos: Sequence[TaskInfo], loaded: LoadedModel, limit: int, seed: int, data_root: Path | None = None
) -> Prompts:
    """Up to `limit` prompts of each task, drawn by `seed`. DataError or UnsupportedError for data that are not here."""
    parts = [part for info in infos for part in _of_task(info, loaded, limit, seed, data_root)]
    about = [part.about[0] for part in parts]
    return Prompts(sum(part.count for part in parts), about, (one for part in parts for one in part.made))


def _of_task(info: TaskInfo, loaded: LoadedModel, limit: int, seed: int, data_root: Path | None) -> Iterator[Prompts]:
    if info.name == "easyvqa":
        yield _easyvqa(limit, seed)
        return
    from coremat.tasks.catalogue import TASKS

    other = VALIDATED_BY.get(info.name)
    for task in load_task(TASKS[other] if other else info, None, data_root):
        yield _of_loaded(task, info.name, other is not None, loaded.preprocessing, limit, seed)


def _of_loaded(
    task: LoadedTask, name: str, all_free: bool, preprocessing: Preprocessing, limit: int, seed: int
) -> Prompts:
    """all_free: what the task asks here is not what it is scored on."""
    own = task.task.config.test_split or task.task.config.validation_split
    split = own if all_free else other_split(list(task.task.dataset), own)
    docs = task.task.dataset[own if split is None else split]
    chosen = list(range(len(docs)))[-limit:] if split is None else drawn(len(docs), limit, seed)
    about = {
        "task": name,
        "split": f"{own}, the last questions: it has no other" if split is None else split,
        "scored_on": split is None,
        "count": len(chosen),
    }
    return Prompts(len(chosen), [about], _conversations(task, docs, chosen, preprocessing))


def _conversations(
    task: LoadedTask, docs: Any, chosen: Sequence[int], preprocessing: Preprocessing
) -> Iterator[Conversation]:
    from coremat.tasks.lmms_eval.model import as_conversation

    with whole_images():
        for number in chosen:
            yield as_conversation(task.task.doc_to_messages(docs[number]), preprocessing)


def other_split(names: Sequence[str], scored: str) -> str | None:
    """A split that is not scored, of those that are there; None if there is none."""
    free = [name for start in OTHER_SPLITS for name in names if name.startswith(start) and name != scored]
    return free[0] if free else None


def drawn(size: int, limit: int, seed: int) -> list[int]:
    """So many of `size` numbers, or all, in an order of their own."""
    return random.Random(seed).sample(range(size), min(limit, size))


def _easyvqa(limit: int, seed: int) -> Prompts:
    """UnsupportedError where the package is not here: what ships is its test split."""
    if find_spec("easy_vqa") is None:
        raise UnsupportedError(
            "a calibration on easyvqa needs its training split, which is in the Python package easy-vqa, and that is "
            "not here; accepted without it: other tasks, such as shapes."
        )
    from coremat.tasks.bundled.build_data import easyvqa_rows

    rows = list(easyvqa_rows("train"))
    chosen = [rows[number] for number in drawn(len(rows), limit, seed)]
    made = (
        asked(row["question"], [{"type": "image", "image": Image.open(BytesIO(row["image"]["bytes"])).convert("RGB")}])
        for row in chosen
    )
    about = {"task": "easyvqa", "split": "train", "scored_on": False, "count": len(chosen)}
    return Prompts(len(chosen), [about], made)
