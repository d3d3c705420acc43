"""Triton kernels of the CUDA path.

    core_rows          one token through the core neurons of an FFN (paper section 2.1, decoding): the operator
    core_rows_triton   its three kernels
    voting             which neurons the tokens of a prompt vote for (eq. 2 and 4): kernel and wrapper

The last two import triton, so import them only where `available` has said yes. Without a GPU they run in Triton's
interpreter: set TRITON_INTERPRET=1 before they are imported, since the decorators read it then.
"""

import os
from importlib.util import find_spec

import torch

OLDEST = (7, 0)  # compute capability: Triton makes no code for older cards
# Of every launch. Multiply and add in one instruction, said aloud because Triton is about to change its default.
OPTIONS = {"enable_fp_fusion": True}


def available(device: torch.device) -> bool:
    """Whether the kernels run on tensors of `device`."""
    if find_spec("triton") is None:
        return False
    if os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on"):
        return True
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= OLDEST
