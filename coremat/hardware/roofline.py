"""The roofline of this machine, measured: the rates of its memory and arithmetic that bound every time."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

ROUNDS = 7
# A decoder's own shapes: a long prompt through one matrix, and one token through it.
TOKENS, OUT, IN = 1024, 8192, 4096
COPIED_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}  # far beyond any cache


@dataclass(frozen=True)
class Roofline:
    """bandwidth: bytes per second, the faster of copying (read and written) and reading a matrix for one token.
    rate: operations per second of a matrix product."""

    bandwidth: float
    rate: float

    def bound_seconds(self, flops: float, moved: float) -> float:
        """No run of so many operations and bytes is faster."""
        return max(flops / self.rate, moved / self.bandwidth)


def measure_roofline(device: torch.device, dtype: torch.dtype) -> Roofline:
    return Roofline(bandwidth=max(_copy_rate(device), _read_rate(device, dtype)), rate=_matmul_rate(device, dtype))


def _copy_rate(device: torch.device) -> float:
    size = COPIED_BYTES["cuda" if device.type == "cuda" else "cpu"]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source), device)


def _read_rate(device: torch.device, dtype: torch.dtype) -> float:
    count = max(1, COPIED_BYTES["cuda" if device.type == "cuda" else "cpu"] // (OUT * IN * dtype.itemsize))
    matrices = [torch.ones(OUT, IN, dtype=dtype, device=device) for _ in range(count)]
    token = torch.ones(1, IN, dtype=dtype, device=device)

    def read() -> None:
        for matrix in matrices:
            functional.linear(token, matrix)

    return count * OUT * IN * dtype.itemsize / _fastest(read, device)


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    weight = torch.randn(OUT, IN, device=device).to(dtype)
    tokens = torch.randn(TOKENS, IN, device=device).to(dtype)
    return 2 * TOKENS * OUT * IN / _fastest(lambda: functional.linear(tokens, weight), device)


def _fastest(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some rounds, after a first that does not count."""
    times = []
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            _wait(device)
            begun = time.perf_counter()
            run()
            _wait(device)
            times.append(time.perf_counter() - begun)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
