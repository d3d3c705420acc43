"""A double buffer: weights visit the device layer after layer, copied asynchronously beside the computation.

One buffer is filled while the other is computed with. A layer's copy is asked for when the second layer before it
is done, so it is under way during the whole layer in between, and the link to the host never rests.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

BUFFERS = 2


class Copier:
    """Fills slots beside the computation. For devices without streams: each copy is done when it is asked for."""

    def copy(self, slot: int, target: torch.Tensor, source: torch.Tensor) -> None:
        """Fill the slot, as soon as the computation before its last release is done."""
        target.copy_(source)

    def wait(self, slot: int) -> None:
        """Let the computation that follows wait for the slot's last copy."""

    def release(self, slot: int) -> None:
        """The computation so far is the last that reads what the slot holds."""

    def finish(self) -> None:
        """Wait for all copies and all computation."""


class StreamCopier(Copier):
    """Copies on a CUDA stream of its own; two events per slot say who waits for whom, and the host waits for none."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._ready = [torch.cuda.Event() for _ in range(BUFFERS)]
        self._free = [torch.cuda.Event() for _ in range(BUFFERS)]
        for slot in range(BUFFERS):
            self.release(slot)

    def copy(self, slot: int, target: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._free[slot])
            target.copy_(source, non_blocking=True)
            self._ready[slot].record(self._stream)

    def wait(self, slot: int) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._ready[slot])

    def release(self, slot: int) -> None:
        self._free[slot].record(torch.cuda.current_stream(self._device))

    def finish(self) -> None:
        torch.cuda.synchronize(self._device)


def copier_for(device: torch.device) -> Copier:
    return StreamCopier(device) if device.type == "cuda" else Copier()


class DoubleBuffer:
    """Layers go through the buffers round and round: the end of one pass fetches the first layers of the next.

    host: [layers, ...]; buffers: [BUFFERS or fewer, ...] on the device. bytes_moved: from host to device so far, with
    the buffers' first filling.
    """

    def __init__(self, host: torch.Tensor, buffers: torch.Tensor, copier: Copier) -> None:
        self.host, self.buffers, self._copier = host, buffers, copier
        self.bytes_moved = 0
        self._holds: list[int] = [-1] * len(buffers)
        self._start_at(0)

    @contextmanager
    def on_device(self, number: int) -> Iterator[torch.Tensor]:
        """The buffer that holds this layer; after the block it is given to the next layer that has none."""
        if number not in self._holds:
            self._start_at(number)
        slot = self._holds.index(number)
        self._copier.wait(slot)
        try:
            yield self.buffers[slot]
        finally:
            self._copier.release(slot)
            self._fetch(slot, number + len(self.buffers))

    def _start_at(self, number: int) -> None:
        """At first, and when a pass was broken off or goes through the layers in another order."""
        for slot in range(len(self.buffers)):
            self._fetch(slot, number + slot)

    def _fetch(self, slot: int, number: int) -> None:
        number %= len(self.host)
        self._copier.copy(slot, self.buffers[slot], self.host[number])
        self._holds[slot] = number
        self.bytes_moved += self.host[number].nbytes

    def close(self) -> None:
        """Let go of the memory on both sides, once nothing reads or writes it any more."""
        self._copier.finish()
        self.host = self.buffers = torch.empty(0)
