"""Where the tensors of a model lie: moved to a device, and back on the way out."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from coremat.errors import UnsupportedError

HOST = torch.device("cpu")


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def move(tensors: Iterable[torch.Tensor], device: torch.device, restore: ExitStack) -> None:
    for tensor in tensors:
        restore.callback(to_device, tensor, tensor.device)
        to_device(tensor, device)


@torch.inference_mode(False)
def to_device(tensor: torch.Tensor, device: torch.device) -> None:
    tensor.data = tensor.data.to(device)


def placed(device: str | torch.device) -> torch.device:
    """A CUDA device with its number: without, it does not equal the device of its tensors."""
    place = torch.device(device)
    if place.type == "cuda" and place.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return place


def keep_attributes(module: nn.Module, names: Sequence[str], restore: ExitStack) -> None:
    """On the way out this object has again what it had of its own under these names, or nothing."""
    before = {name: module.__dict__[name] for name in names if name in module.__dict__}
    restore.callback(module.__dict__.update, before)
    for name in names:
        restore.callback(module.__dict__.pop, name, None)


def check_loaded(model: nn.Module) -> None:
    for name, tensor in model.named_parameters():
        if tensor.is_meta:
            raise UnsupportedError(f"{name} is on the meta device; accepted: a model with all its weights in memory.")
