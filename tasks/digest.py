"""A hash of what an answer depends on, and the numbers that a sample draws with."""

import hashlib
import json
from typing import Any

from PIL import Image


def sample_seed(seed: int, task: str, doc_id: int | str) -> int:
    """What a sample draws with: its own, whatever batch it comes in and whatever was answered before."""
    return int(digest(seed, task, doc_id)[:15], 16)


def digest(*parts: Any) -> str:
    """A hash of plain values, images and clips, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return [value.mode, *value.size, hashlib.sha256(value.tobytes()).hexdigest()]
    return repr(value)  # a clip's names its content
