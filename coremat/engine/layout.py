"""How the weights of `down_proj` lie in memory: neuron by neuron while a model is sparse, as they were afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def neuron_major(mlp: Any) -> Iterator[None]:
    """Let the weight [H, F] of `down_proj` be a view of memory [F, H], so that a neuron is a row and not a column.

    Gathering columns reads a cache line for every number. Values, shape and the parameter stay; no memory is added.
    """
    weight = mlp.down_proj.weight
    if weight.T.is_contiguous():
        yield
        return
    weight.data = weight.data.T.contiguous().T
    try:
        yield
    finally:
        weight.data = weight.data.contiguous()
