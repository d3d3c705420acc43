"""What a long run tells while it is under way."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """What a progress display needs: units in the whole run, what it is at, units just done."""

    total: int
    description: str
    advance: int


Progress = Callable[[Step], None]
