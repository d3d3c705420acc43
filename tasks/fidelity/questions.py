"""What a fidelity run asks: prompts of a file, the questions of tasks, or one question about each image of a folder.

Nothing is fitted on them, so a task gives the questions that it is scored on. A question that cannot be asked is named
and counted, and the others are asked.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from coremat.errors import ConfigError, DataError
from coremat.generate import Conversation
from coremat.preprocessing.images import open_medium
from coremat.preprocessing.prompt_format import Preprocessing
from coremat.tasks.catalogue import TaskInfo
from coremat.tasks.lmms_eval.load import LoadedTask, load_task
from coremat.tasks.lmms_eval.quiet import lmms_eval_quiet
from coremat.tasks.prompt_file import asked, conversation_of_row, prompt_lines, prompt_row


@dataclass(frozen=True)
class Question:
    """source: the task, the file or the folder; doc_id: its number in a task, its line in a file, an image's name.
    read: shows and says it, or raises DataError for what cannot be read."""

    source: str
    doc_id: int | str
    read: Callable[[], Conversation]


@dataclass(frozen=True)
class Questions:
    """identity: plain JSON that differs where other questions are asked. sources: the names of those. load: makes the
    questions, in order. around: what has to be in force while they are loaded and read; it is given the run's folder.
    """

    identity: dict[str, Any]
    load: Callable[[], Sequence[Question]]
    around: Callable[[Path], AbstractContextManager[None]] = lambda folder: nullcontext()


# --- a file of one's own ----------------------------------------------------------------------------------------------


def questions_of_file(path: Path, limit: int, preprocessing: Preprocessing, takes_images: bool) -> Questions:
    """The first `limit` lines. DataError for a file that cannot be read, or that holds no prompt."""
    lines = prompt_lines(path)[:limit]
    read = partial(_read_line, path, preprocessing, takes_images)
    questions = [Question(path.name, number, partial(read, number, line)) for number, line in lines]
    if not questions:
        raise DataError(f"{str(path)!r} holds no prompt; accepted: lines such as " + '{"question": "..."}.')
    text = "\n".join(line for _, line in lines)
    identity = {"prompts": path.name, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return Questions(identity, lambda: questions)


def _read_line(path: Path, preprocessing: Preprocessing, takes_images: bool, number: int, line: str) -> Conversation:
    row = prompt_row(path, number, line)
    if "image" in row and not takes_images:
        raise DataError(f"line {number} of {str(path)!r} shows an image, and the model reads text alone")
    return conversation_of_row(path.parent, row, preprocessing)


# --- a folder of images -----------------------------------------------------------------------------------------------


def questions_of_images(folder: Path, question: str, limit: int, preprocessing: Preprocessing) -> Questions:
    """The same question about the first `limit` images, by their names. DataError for a folder that has none."""
    if not question.strip():
        raise ConfigError(f"--question is {question!r}; accepted: a question.")
    images, name = _images(folder)[:limit], folder.resolve().name
    questions = [Question(name, path.name, partial(_read_image, path, question, preprocessing)) for path in images]
    identity = {"folder": name, "images": [path.name for path in images], "question": question}
    return Questions(identity, lambda: questions)


def _images(folder: Path) -> list[Path]:
    known = Image.registered_extensions()
    try:
        there = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"the images {str(folder)!r} cannot be read: {error.strerror}.") from error
    found = [path for path in there if path.suffix.lower() in known]
    if not found:
        raise DataError(f"there is no image in {str(folder)!r}; accepted: a folder with PNG, JPEG or the like.")
    return found


def _read_image(path: Path, question: str, preprocessing: Preprocessing) -> Conversation:
    medium = open_medium(str(path), preprocessing)
    if medium["type"] != "image":
        raise DataError(f"{str(path)!r} is no image")
    return asked(question, [medium])


# --- tasks ------------------------------------------------------------------------------------------------------------


def questions_of_tasks(
    infos: Sequence[TaskInfo], limit: int, preprocessing: Preprocessing, data_root: Path | None = None
) -> Questions:
    """The first `limit` questions of each task, as an evaluation asks them."""

    def load() -> list[Question]:
        tasks = {task.name: task for info in infos for task in load_task(info, limit, data_root)}
        return [question for task in tasks.values() for question in _of_task(task, preprocessing)]

    return Questions({"tasks": [info.name for info in infos]}, load, lmms_eval_quiet)


def _of_task(task: LoadedTask, preprocessing: Preprocessing) -> Iterator[Question]:
    from coremat.tasks.lmms_eval.model import read_conversation

    for number in range(task.size):
        read = partial(read_conversation, task.task.doc_to_messages, task.task.eval_docs, number, preprocessing)
        yield Question(task.name, number, read)
