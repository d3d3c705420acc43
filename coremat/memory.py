"""How a device or a host says that it has no more memory: the one place that knows the words."""

import torch

# Of errors without a class of their own: from drivers and backends (CUDA, Triton, MPS), from CUDA's libraries (cuBLAS,
# cuDNN), and from the host's allocator, as torch, the system or C++ says it.
WORDS = (
    "out of memory",
    "STATUS_ALLOC_FAILED",
    "HOST_ALLOCATION_FAILED",
    "allocate memory",
    "not enough memory",
    "bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, by its class or in words."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(words in str(error) for words in WORDS)
