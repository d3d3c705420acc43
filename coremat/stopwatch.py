"""Time spent inside marked stretches, on the device that does the work."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up stretches. On CUDA it records events, and waits for them only when `seconds` is read."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._elapsed = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        if not self._cuda:
            started = time.perf_counter()
            yield
            self._elapsed += time.perf_counter() - started
            return
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        yield
        pair[1].record()
        self._events.append(pair)

    @property
    def seconds(self) -> float:
        for begin, end in self._events:
            end.synchronize()
            self._elapsed += begin.elapsed_time(end) / 1000
        self._events.clear()
        return self._elapsed
