"""Running under a device memory limit, with weights in host memory: coremat's way, and what a user would do without it.

`offloaded_ffn` keeps the FFN weights in one pinned block on the host; they visit the device layer by layer, in two
slabs (`coremat.slabs`). Under `coremat.apply` only prefills need them: core rows are copied out of the slabs, and
decoding moves nothing. Without it every step streams every layer. `accelerate_offload` is accelerate's own.
"""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from coremat.errors import ConfigError, UnsupportedError
from coremat.models import adapter_for
from coremat.slabs import SLABS, SlabRing, copier_for

HOST = torch.device("cpu")


@dataclass(frozen=True)
class OffloadedFFN:
    """What an offload takes: bytes on the host (pinned, for a CUDA device), the seconds to pin them, bytes of the slabs
    on the device, and the bytes that were moved there so far, the slabs' first filling with them."""

    host_bytes: int
    pinning_seconds: float
    slab_bytes: int
    ring: SlabRing

    @property
    def bytes_moved(self) -> int:
        return self.ring.bytes_moved


@contextmanager
def offloaded_ffn(model: nn.Module, device: str | torch.device, resident_layers: int = 0) -> Iterator[OffloadedFFN]:
    """Run `model` on `device`, with the FFN weights of all but its first `resident_layers` layers in host memory.

    Enter it before `coremat.apply`. Parameters have their true values throughout; on the way out the model is what and
    where it was. Raises ConfigError for a number of layers that there is not or a model in use, UnsupportedError for
    weights that cannot be offloaded and for host memory that cannot be pinned.
    """
    adapter = adapter_for(model)
    ffns = [adapter.ffn(layer) for layer in adapter.layers]
    if type(resident_layers) is not int or not 0 <= resident_layers <= len(ffns):
        raise ConfigError(f"resident_layers is {resident_layers!r}; accepted for this model: 0 to {len(ffns)}.")
    _check_loaded(model)
    _check_ffns(ffns)
    with ExitStack() as undo:
        yield _offload(model, ffns, ffns[resident_layers:], _place(device), undo)


@torch.inference_mode(False)  # whose tensors know no gradients: the model must not be left with such
def _offload(model: nn.Module, ffns: list, away: list, device: torch.device, undo: ExitStack) -> OffloadedFFN:
    """The FFNs that go away into a host block, the rest to the device, and each forward behind the ring."""
    host = _host_block(ffns[0], len(away))
    for mlp, home in zip(away, host, strict=True):
        _move_into(home, mlp, undo)
    offloaded = {id(weight) for mlp in away for weight in _weights(mlp)}
    _move([tensor for tensor in _tensors(model) if id(tensor) not in offloaded], device, undo)
    seconds = _pin(host, undo) if device.type == "cuda" and away else 0.0
    slabs = host.new_empty(min(SLABS, len(away)), *host.shape[1:], device=device)
    ring = SlabRing(host, slabs, copier_for(device))
    undo.callback(ring.close)
    for number, mlp in enumerate(away):
        _keep_attributes(mlp, ("forward",), undo)
        mlp.forward = StreamedForward(mlp, number, ring)
    return OffloadedFFN(host.nbytes, seconds, slabs.nbytes, ring)


class StreamedForward:
    """The forward that an FFN had, run while its weights are on the device."""

    streamed = True  # for `coremat.engine`: what is wanted of these weights must be taken in the prefill

    def __init__(self, mlp: Any, number: int, ring: SlabRing) -> None:
        self._mlp, self._forward = mlp, mlp.forward
        self._number, self._ring = number, ring

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            raise UnsupportedError("gradients are on; accepted with offloaded weights: a call under torch.no_grad().")
        with self._ring.on_device(self._number) as slab:
            _point(self._mlp, slab)
            try:
                return self._forward(*args, **kwargs)
            finally:
                _point(self._mlp, self._ring.host[self._number])


# --- weights, and where they lie --------------------------------------------------------------------------------


def _weights(mlp: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight


def _views(slab: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[3F, H], neuron by neuron, as weights in the shapes that nn.Linear gives them."""
    gate, up, down = slab.chunk(3)
    return gate, up, down.T


def _point(mlp: Any, slab: torch.Tensor) -> None:
    for weight, view in zip(_weights(mlp), _views(slab), strict=True):
        weight.data = view


def _host_block(mlp: Any, layers: int) -> torch.Tensor:
    """[layers, 3F, H] for FFNs like this one; the system gives memory page by page, as it is filled."""
    neurons, hidden = mlp.gate_proj.weight.shape
    return torch.empty(layers, 3 * neurons, hidden, dtype=mlp.gate_proj.weight.dtype, device=HOST)


def _move_into(home: torch.Tensor, mlp: Any, undo: ExitStack) -> None:
    for weight, view in zip(_weights(mlp), _views(home), strict=True):
        undo.callback(_move_out, weight, weight.device, weight.stride())
        weight.data = view.copy_(weight.detach())


@torch.inference_mode(False)
def _move_out(weight: torch.Tensor, device: torch.device, stride: tuple[int, ...]) -> None:
    own = torch.empty_strided(weight.shape, stride, dtype=weight.dtype, device=device)
    weight.data = own.copy_(weight.detach())


def _pin(host: torch.Tensor, undo: ExitStack) -> float:
    """Register the block as it is: memory that torch pins is rounded up to a power of two. Returns the seconds."""
    runtime, portable, started = torch.cuda.cudart(), 1, time.perf_counter()
    failure = int(runtime.cudaHostRegister(host.data_ptr(), host.nbytes, portable))
    if failure:
        raise UnsupportedError(
            f"{host.nbytes / 1e9:.2f} GB of host memory cannot be pinned for FFN weights (CUDA error {failure}); "
            "free host memory, or keep more layers resident."
        )
    undo.callback(runtime.cudaHostUnregister, host.data_ptr())
    return time.perf_counter() - started


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _move(tensors: Iterable[torch.Tensor], device: torch.device, undo: ExitStack) -> None:
    for tensor in tensors:
        undo.callback(_to, tensor, tensor.device)
        _to(tensor, device)


@torch.inference_mode(False)
def _to(tensor: torch.Tensor, device: torch.device) -> None:
    tensor.data = tensor.data.to(device)


def _place(device: str | torch.device) -> torch.device:
    """A CUDA device with its number: without, it does not equal the device of its tensors."""
    place = torch.device(device)
    if place.type == "cuda" and place.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return place


def _keep_attributes(module: nn.Module, names: Sequence[str], undo: ExitStack) -> None:
    """On the way out this object has again what it had of its own under these names, or nothing."""
    before = {name: module.__dict__[name] for name in names if name in module.__dict__}
    undo.callback(module.__dict__.update, before)
    for name in names:
        undo.callback(module.__dict__.pop, name, None)


def _check_loaded(model: nn.Module) -> None:
    for name, tensor in model.named_parameters():
        if tensor.is_meta:
            raise UnsupportedError(f"{name} is on the meta device; accepted: a model with all its weights in memory.")


def _check_ffns(ffns: Sequence[Any]) -> None:
    if any(getattr(mlp.forward, "__func__", None) is not type(mlp).forward for mlp in ffns):
        raise ConfigError("an FFN's forward is replaced already; accepted: offloaded_ffn once, before coremat.apply.")
    weights = [weight for mlp in ffns for weight in (*_weights(mlp)[:2], _weights(mlp)[2].T)]
    kinds = {f"{str(weight.dtype).removeprefix('torch.')} {tuple(weight.shape)}" for weight in weights}
    if len(kinds) > 1 or not weights[0].is_floating_point():
        raise UnsupportedError(
            f"the FFN weights are {', '.join(sorted(kinds))}; accepted: one shape and one floating-point type."
        )


# --- accelerate's offload ---------------------------------------------------------------------------------------


@contextmanager
def accelerate_offload(model: nn.Module, device: str | torch.device, memory_limit: int) -> Iterator[dict[str, Any]]:
    """Run `model` under accelerate's own CPU offload. Yields its device map: where the weights of each module are kept.

    memory_limit: bytes of weights on the device, those that stay and those that visit; the KV cache and activations
    come on top. On the way out the model is what and where it was. Raises UnsupportedError where accelerate is not
    installed, and for a limit under which it would leave all weights on the host and compute there.
    """
    accelerate = _accelerate()
    _check_loaded(model)
    place = _place(device)
    with ExitStack() as undo:
        _quiet(undo)
        _move(_tensors(model), HOST, undo)
        _keep_modules(model, undo)
        undo.callback(accelerate.hooks.remove_hook_from_submodules, model)
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


def _keep_modules(model: nn.Module, undo: ExitStack) -> None:
    """accelerate replaces parameters, buffers and forwards, and not all of that comes back with its hooks' removal."""
    for module in model.modules():
        for name in ("_parameters", "_buffers"):
            undo.callback(setattr, module, name, dict(getattr(module, name)))
        _keep_attributes(module, ("forward", "hf_device_map"), undo)


def _quiet(undo: ExitStack) -> None:
    """It would warn of what was asked for: weights that are not on the device."""
    logger = logging.getLogger("accelerate")
    undo.callback(logger.setLevel, logger.level)
    logger.setLevel(logging.ERROR)
