"""Lack of memory is known by all its words, and no other fault is taken for it."""

import pytest
import torch
from no_memory import NO_MEMORY

from coremat.memory import is_out_of_memory


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_lack_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_lack_of_memory_as_torch_says_it_of_a_cpu() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "shape '[2]' is invalid for input of size 3",
        "CUDA error: an illegal memory access was encountered",
        "out of resource: shared memory, Required: 140000, Hardware limit: 101376",
    ],
)
def test_another_fault(text: str) -> None:
    assert not is_out_of_memory(RuntimeError(text))
