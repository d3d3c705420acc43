"""Time on the device that does the work: CUDA events, which wait for nothing until read, or a clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Marks:
    """Moments in the order in which they are marked, under names that may come again."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._moments: list[tuple[str, torch.cuda.Event | float]] = []

    def mark(self, name: str) -> None:
        self._moments.append((name, self._now()))

    def _now(self) -> torch.cuda.Event | float:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> list[tuple[str, float]]:
        """Every mark with its time since the first; waits for the device."""
        first = self._moments[0][1] if self._moments else 0.0
        return [(name, _between(first, moment)) for name, moment in self._moments]

    def clear(self) -> None:
        self._moments.clear()

    def put_before(self, later: "Marks") -> None:
        """Move all marks in front of those of another, later one."""
        later._moments[:0] = self._moments
        self.clear()


class Stopwatch:
    """Adds up stretches. On CUDA it waits for them only when `seconds` is read."""

    def __init__(self, device: torch.device) -> None:
        self._marks = Marks(device)
        self._elapsed = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        self._marks.mark("begin")
        yield
        self._marks.mark("end")

    def take_over(self, earlier: "Stopwatch") -> None:
        """Count the stretches of an earlier watch, which begins anew."""
        earlier._marks.put_before(self._marks)

    @property
    def seconds(self) -> float:
        times = [moment for _, moment in self._marks.seconds()]
        self._marks.clear()
        self._elapsed += sum(times[1::2]) - sum(times[::2])
        return self._elapsed


def _between(begin: Any, end: Any) -> float:
    if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    return end - begin
