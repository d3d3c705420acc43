"""The answers of a run, on the disk as they are made: `samples.jsonl` in the output folder, beside `run.json`.

`run.json` says whose folder it is: the same run goes on in it, any other is refused. `samples.jsonl` gets one line
per method, task and question; a batch is written, flushed and synced before the next one is computed, so that a
killed run has lost one batch at most. Its last line may then be torn: it is cut off before anything is appended.
Of several processes each has a file of its own, `samples.rank1.jsonl` and so on, and reads all of them.

A line carries the key of its answer, a hash of all that the answer depends on, and is served again under that key
alone. What lmms-eval says only when a task is through, `scores` and `correct`, is null until then; `finish` writes
the whole file anew, atomically, with these filled in and in the order of the run.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from coremat.errors import OutputError
from coremat.results.record.eval import RECORD_FILE, SAMPLES_FILE, write_text_atomic
from coremat.tasks.run.lines import Line, append, telling, whole_lines

RUN_FILE = "run.json"
KEPT = "answers"


def claim_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make `folder` this run's own, or find that it is already; OutputError if it is another run's.

    A run that was stopped before its first answer holds no folder.
    """
    path = folder / RUN_FILE
    mine = json.loads(json.dumps(identity))
    taken = [path.name for path in (folder / RECORD_FILE, *journals(folder)) if _size(path)]
    if not taken:
        write_text_atomic(path, json.dumps(mine, indent=1) + "\n")
        return
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{folder} holds a {taken[0]} but no {RUN_FILE} to tell whose; give another folder"
        ) from error
    if found != mine:
        _refuse(folder, found if isinstance(found, dict) else {}, mine)


def journals(folder: Path) -> list[Path]:
    """The files of all ranks: rank 0's, and those of others that a stopped run has left."""
    return [folder / SAMPLES_FILE, *sorted(folder.glob(_of_rank("*")))]


def _of_rank(rank: int | str) -> str:
    return SAMPLES_FILE if rank == 0 else SAMPLES_FILE.replace(".", f".rank{rank}.")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _refuse(folder: Path, there: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    told = list(_differences(there, mine))
    more = f"; and {len(told) - 2} more" if len(told) > 2 else ""
    raise OutputError(
        f"{folder} holds another run ({'; '.join(told[:2])}{more}); give another folder, or the same options to go on"
    )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], of: str = "") -> Iterator[str]:
    """In words, down to the field of a method."""
    for name in dict.fromkeys((*here, *there)):
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{of}{name}.")
        elif old != new:
            yield f"{of}{name}: {_short(old)} there, {_short(new)} here"


def _short(value: Any, most: int = 60) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, dict)) else str(value)
    return text if len(text) <= most else text[: most - 3] + "..."


class Journal:
    """The answers on the disk under `folder`, and how to add to them. Close it, or use it in `with`."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.path = folder / _of_rank(rank)
        with telling(self.path, KEPT):
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            self.lines, self._end = whole_lines(self.path.read_bytes())
            os.ftruncate(self._file, self._end)
        self.read_others()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def read_others(self) -> None:
        """Take in what the other ranks have written so far."""
        for path in journals(self.folder):
            if path != self.path and path.exists():
                with telling(path, KEPT):
                    self.lines.update(whole_lines(path.read_bytes())[0])

    def append(self, lines: Iterable[Line]) -> None:
        """Add these answers and wait until they are on the disk; all of them or none."""
        new = list(lines)
        with telling(self.path, KEPT):
            self._end = append(self._file, self._end, "".join(_dump(line) for line in new).encode())
        self.lines.update({line["key"]: line for line in new})

    def finish(self, lines: Iterable[Line]) -> None:
        """Write these lines, complete, in the place of what all ranks have journalled."""
        write_text_atomic(self.folder / SAMPLES_FILE, "".join(_dump(line) for line in lines))
        for path in self.folder.glob(_of_rank("*")):
            path.unlink()


def _dump(line: Line) -> str:
    return json.dumps(line, default=str, allow_nan=False) + "\n"
