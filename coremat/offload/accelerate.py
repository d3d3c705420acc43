"""accelerate's own CPU offload, what a user would do without coremat: whole decoder layers on the host."""

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from coremat.errors import UnsupportedError
from coremat.offload.placement import HOST, check_loaded, keep_attributes, move, placed, tensors_of


@contextmanager
def accelerate_offload(model: nn.Module, device: str | torch.device, memory_limit: int) -> Iterator[dict[str, Any]]:
    """Run `model` under accelerate's own CPU offload. Yields its device map: where the weights of each module are kept.

    memory_limit: bytes of weights on the device, those that stay and those that visit; the KV cache and activations
    come on top. On the way out the model is what and where it was. Raises UnsupportedError where accelerate is not
    installed, and for a limit under which it would leave all weights on the host and compute there.
    """
    accelerate = _accelerate()
    check_loaded(model)
    place = placed(device)
    with ExitStack() as restore:
        _quiet(restore)
        move(tensors_of(model), HOST, restore)
        _keep_modules(model, restore)
        restore.callback(accelerate.hooks.remove_hook_from_submodules, model)
        device_map = _device_map(accelerate, model, place, memory_limit)
        skipped = list(getattr(model, "_skip_keys_device_placement", None) or [])
        accelerate.dispatch_model(model, device_map, main_device=place, skip_keys=skipped)
        yield device_map


def _accelerate() -> Any:
    try:
        import accelerate
    except ImportError as error:
        raise UnsupportedError("accelerate, whose CPU offload is asked for, is not installed; install it.") from error
    return accelerate


def _device_map(accelerate: Any, model: nn.Module, place: torch.device, limit: int) -> dict[str, Any]:
    """Whole decoder layers go to the device until it is full, the others to the host."""
    number = place.index or 0
    indivisible = list(getattr(model, "_no_split_modules", None) or [])
    room = {number: limit, "cpu": sys.maxsize}
    chosen = accelerate.infer_auto_device_map(model, max_memory=room, no_split_module_classes=indivisible)
    if number not in chosen.values():
        raise UnsupportedError(f"memory_limit is {limit} bytes, in which no part of this model fits on {place}.")
    return {name: place if where == number else where for name, where in chosen.items()}


def _keep_modules(model: nn.Module, restore: ExitStack) -> None:
    """accelerate replaces parameters, buffers and forwards, and not all of that comes back with its hooks' removal."""
    for module in model.modules():
        for name in ("_parameters", "_buffers"):
            restore.callback(setattr, module, name, dict(getattr(module, name)))
        keep_attributes(module, ("forward", "hf_device_map"), restore)


def _quiet(restore: ExitStack) -> None:
    """It would warn of what was asked for: weights that are not on the device."""
    logger = logging.getLogger("accelerate")
    restore.callback(logger.setLevel, logger.level)
    logger.setLevel(logging.ERROR)
