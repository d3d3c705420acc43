"""Files of JSON lines that outlast a kill or a full disk: each line has a `key`, and is there whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coremat.errors import OutputError

Line = dict[str, Any]


def whole_lines(data: bytes) -> tuple[dict[str, Line], int]:
    """The lines by their keys, later ones in the place of earlier; and where the last whole one ends.

    What a kill has torn stands behind it. A broken line before it costs itself and no more.
    """
    found: dict[str, Line] = {}
    end = position = 0
    for text in data.splitlines(keepends=True):
        position += len(text)
        line = _parsed(text)
        if line is not None:
            found[line["key"]] = line
            end = position
    return found, end


def _parsed(text: bytes) -> Line | None:
    if not text.endswith(b"\n"):
        return None
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("key"), str) else None


def append(file: int, end: int, data: bytes) -> int:
    """Write whole lines behind `end` and wait until they are on the disk, all of them or none; the new end."""
    position = end
    try:
        while data:
            written = os.pwrite(file, data, position)
            position, data = position + written, data[written:]
        os.fsync(file)
    except OSError:
        os.ftruncate(file, end)
        raise
    return position


@contextmanager
def telling(path: Path, kept: str) -> Iterator[None]:
    """Turn an OSError into the sentence that the user needs: what was written (`kept`) stays, and serves again."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; the {kept} written so far stay, "
            "and the same command goes on"
        ) from error
