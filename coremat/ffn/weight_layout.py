"""How weights of which inputs are chosen lie in memory: input by input while a model is sparse (of `down_proj` these
are the neurons), as they were afterwards."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

MATRIX_UNITS = {torch.bfloat16: "amx_bf16", torch.float16: "amx_fp16"}
LONG = 256  # tokens from which the product is made the other way round


class NeuronMajor:
    """Lets the weight [H, F] of one Linear be a view of memory [F, H], so that an input is a row and not a column.

    Gathering columns reads a cache line for every number. Values, shape and the parameter stay. The memory is the
    weight's own, so that what else points there (an older state_dict) is right again afterwards, and no memory is
    added; only memory that other processes share, or that inference mode made, is left alone, and a copy used.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight, self._original = weight, weight.data
        self._values: torch.Tensor | None = None  # while the memory is being rearranged
        self._entered = False

    @property
    def is_needed(self) -> bool:
        return not self.weight.T.is_contiguous()

    @torch.inference_mode(False)  # whose tensors know no gradients: the model must not be left with such
    def enter(self) -> None:
        if not self._in_place:
            self.weight.data = self._original.T.contiguous().T
            return
        self._values = self._original.clone()
        memory = self._original.view(-1)
        memory.copy_(self._values.T.reshape(-1))
        self.weight.data = memory.view(self._values.T.shape).T
        self._entered, self._values = True, None

    @torch.inference_mode(False)
    def leave(self) -> None:
        """Also after an `enter` that was interrupted, and a second time."""
        if self._entered and self._values is None:
            self._values = self.weight.data.contiguous()
        if self._values is not None:
            self._original.copy_(self._values)
        self.weight.data = self._original
        self._entered, self._values = False, None

    @property
    def _in_place(self) -> bool:
        data = self._original
        shared = data.device.type == "cpu" and data.is_shared()
        return data.is_contiguous() and not shared and not data.is_inference()


def product(down: Any, plain: Callable) -> Callable:
    """The forward of `down_proj`. On a CPU a product with many tokens is a fifth faster as (W xᵀ)ᵀ in this layout, but
    takes twice as long where the CPU has matrix units for the dtype."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        if len(tokens) < LONG or _has_matrix_units(x.dtype):
            return plain(x)
        out = torch.mm(down.weight, tokens.T).T.contiguous().view(*x.shape[:-1], -1)
        return out if down.bias is None else out + down.bias

    return forward


@cache
def _has_matrix_units(dtype: torch.dtype) -> bool:
    """Whether the CPU multiplies tiles of this dtype (Intel's AMX); False where torch cannot tell."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get(MATRIX_UNITS.get(dtype, "")))
