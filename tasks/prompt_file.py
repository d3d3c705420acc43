"""Prompts of one's own, a line each: {"question": "...", "image": "a path from the file's folder, or left out"}."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coremat.errors import DataError
from coremat.generate import Conversation
from coremat.preprocessing.images import open_medium
from coremat.preprocessing.prompt_format import Preprocessing


def prompt_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that hold anything, with their numbers from 1. DataError for a file that cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the prompts {str(path)!r} cannot be read: {error}.") from error
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def prompt_row(path: Path, number: int, line: str) -> dict[str, str]:
    """DataError for a line that is no prompt."""
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        row = None
    known = isinstance(row, dict) and "question" in row and set(row) <= {"question", "image"}
    if not known or not all(isinstance(value, str) for value in row.values()) or not row["question"].strip():
        raise DataError(
            f"line {number} of {str(path)!r} is {line[:80]!r}; accepted: "
            '{"question": "...", "image": "a path"}, with or without the image.'
        )
    return row


def conversation_of_row(folder: Path, row: dict[str, str], preprocessing: Preprocessing) -> Conversation:
    """DataError for an image that cannot be read."""
    media = [open_medium(str(folder / row["image"]), preprocessing)] if "image" in row else []
    return asked(row["question"], media)


def asked(question: str, media: Sequence[dict[str, Any]]) -> Conversation:
    """One turn of the user: what is shown, and the question about it."""
    return [{"role": "user", "content": [*media, {"type": "text", "text": question}]}]
