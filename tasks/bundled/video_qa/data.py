"""The questions, answers and videos as the evaluation of Video-LLaVA lays them out (the form is Video-ChatGPT's).

test_q.json    [{"video_name": ..., "question": ..., "question_id": ...}, ...]
test_a.json    [{"answer": ..., "type": ..., "question_id": ...}, ...], in the same order
videos/        <video_name>.mp4, or another of `ENDINGS`
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from coremat.errors import DataError

if TYPE_CHECKING:
    from datasets import DatasetDict

ENDINGS = (".mp4", ".avi", ".mkv", ".webm", ".mov")
COLUMNS = ("video", "video_name", "question", "answer", "question_id", "type")

Row = dict[str, Any]


def load(folder: Path) -> "DatasetDict":
    """Split `test`, all columns strings: `video` is the file's path, `type` of the answer "" where it has none.

    DataError for files that are missing or of another form, a question without an answer, videos that are not there.
    """
    from datasets import Dataset, DatasetDict, Features, Value

    questions = _entries(folder / "test_q.json", ("video_name", "question", "question_id"))
    answers = _entries(folder / "test_a.json", ("answer", "question_id"))
    _check_pairs(folder, questions, answers)
    videos = _videos(folder / "videos", [question["video_name"] for question in questions])
    rows = [_row(question, answer, videos) for question, answer in zip(questions, answers, strict=True)]
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    return DatasetDict(test=Dataset.from_dict(columns, Features({name: Value("string") for name in COLUMNS})))


def _row(question: Row, answer: Row, videos: Mapping[str, Path]) -> dict[str, str]:
    name = str(question["video_name"])
    return {
        "video": str(videos[name]),
        "video_name": name,
        "question": str(question["question"]),
        "answer": str(answer["answer"]),
        "question_id": str(question["question_id"]),
        "type": str(answer.get("type", "")),
    }


def _entries(path: Path, needed: Sequence[str]) -> list[Row]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"there is no {path}; accepted: a folder with test_q.json, test_a.json and videos.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.") from error
    accepted = f"accepted: a list of entries with {', '.join(needed)}."
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} holds no list of entries; {accepted}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not set(needed) <= set(entry):
            raise DataError(f"entry {number} of {path} is {entry!r}; {accepted}")
    return entries


def _check_pairs(folder: Path, questions: Sequence[Row], answers: Sequence[Row]) -> None:
    """They belong together by their place, as in the evaluation that they come from, and their ids say the same."""
    for number, question in enumerate(questions):
        there = answers[number]["question_id"] if number < len(answers) else None
        if str(there) != str(question["question_id"]):
            raise DataError(
                f"question {question['question_id']!r}, entry {number} of {folder / 'test_q.json'}, has no answer "
                f"in its place in test_a.json, where there is {'nothing' if there is None else repr(there)}."
            )
    if len(answers) > len(questions):
        raise DataError(f"{folder / 'test_a.json'} has {len(answers)} answers to {len(questions)} questions.")


def _videos(folder: Path, names: Sequence[object]) -> dict[str, Path]:
    """The file of each video that is asked about."""
    there = {path.stem: path for path in sorted(folder.glob("*")) if path.suffix.lower() in ENDINGS}
    wanted = list(dict.fromkeys(map(str, names)))
    missing = [name for name in wanted if name not in there]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(wanted)} videos are not in {folder}, the first is {missing[0]!r}; "
            f"accepted: files named so, with {', '.join(ENDINGS)}."
        )
    return {name: there[name] for name in wanted}


_FOLDER = "GPT_Zero_Shot_QA"
OWN_DATASETS: Mapping[str, Callable[[Path], "DatasetDict"]] = MappingProxyType(
    {f"{_FOLDER}/{name}_Zero_Shot_QA": load for name in ("MSVD", "MSRVTT")}
)
"""By the `dataset_path` of the task: what takes the folder of that name below `--data-root` and loads it."""
