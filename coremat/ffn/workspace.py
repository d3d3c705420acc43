"""Memory for what a prompt brings: allocated once, larger only when it must be, and otherwise never moved."""

from math import prod

import torch


class Workspace:
    """Memory by name. A captured decode step goes on reading it, prompt after prompt."""

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def room(self, name: str, like: torch.Tensor, *shape: int) -> torch.Tensor:
        """Memory of this shape, with the dtype and on the device of `like`, holding whatever it held."""
        need, memory = prod(shape), self._memory.get(name)
        if memory is None or len(memory) < need or memory.dtype != like.dtype or memory.device != like.device:
            with torch.inference_mode(False):  # what is allocated in inference mode cannot be written to outside of it
                memory = self._memory[name] = torch.empty(need, dtype=like.dtype, device=like.device)
        return memory[:need].view(shape)

    def keep(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """A copy of `value`."""
        return self.room(name, value, *value.shape).copy_(value)

    @property
    def bytes(self) -> int:
        return sum(memory.numel() * memory.element_size() for memory in self._memory.values())
