"""FFN streaming: a model on a small device, its FFN weights in one pinned block of host memory.

The weights visit the device layer by layer, in a double buffer (`coremat.offload.double_buffer`). Under `coremat.apply`
only prefills need them: core rows are copied out of the buffers, and decoding moves nothing. Without it every step
streams every layer.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from coremat.errors import ConfigError, UnsupportedError
from coremat.models.families import adapter_for
from coremat.offload.double_buffer import BUFFERS, DoubleBuffer, copier_for
from coremat.offload.placement import HOST, check_loaded, keep_attributes, move, placed, tensors_of


@dataclass(frozen=True)
class OffloadedFFN:
    """What an offload takes: bytes on the host (pinned, for a CUDA device), the seconds to pin them, bytes of the
    buffers on the device, and the bytes that were moved there so far, the buffers' first filling with them."""

    host_bytes: int
    pinning_seconds: float
    buffer_bytes: int
    buffers: DoubleBuffer

    @property
    def bytes_moved(self) -> int:
        return self.buffers.bytes_moved


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
    check_loaded(model)
    _check_ffns(ffns)
    with ExitStack() as restore:
        yield _offload(model, ffns, ffns[resident_layers:], placed(device), restore)


@torch.inference_mode(False)  # whose tensors know no gradients: the model must not be left with such
def _offload(model: nn.Module, ffns: list, away: list, device: torch.device, restore: ExitStack) -> OffloadedFFN:
    """The FFNs that go away into a host block, the rest to the device, and each forward behind the double buffer."""
    host = _host_block(ffns[0], len(away))
    for mlp, home in zip(away, host, strict=True):
        _move_into(home, mlp, restore)
    offloaded = {id(weight) for mlp in away for weight in _weights(mlp)}
    move([tensor for tensor in tensors_of(model) if id(tensor) not in offloaded], device, restore)
    seconds = _pin(host, restore) if device.type == "cuda" and away else 0.0
    room = host.new_empty(min(BUFFERS, len(away)), *host.shape[1:], device=device)
    buffers = DoubleBuffer(host, room, copier_for(device))
    restore.callback(buffers.close)
    for number, mlp in enumerate(away):
        keep_attributes(mlp, ("forward",), restore)
        mlp.forward = StreamedForward(mlp, number, buffers)
    return OffloadedFFN(host.nbytes, seconds, room.nbytes, buffers)


class StreamedForward:
    """The forward that an FFN had, run while its weights are on the device."""

    streamed = True  # for `coremat.ffn`: what is wanted of these weights must be taken in the prefill

    def __init__(self, mlp: Any, number: int, buffers: DoubleBuffer) -> None:
        self._mlp, self._forward = mlp, mlp.forward
        self._number, self._buffers = number, buffers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            raise UnsupportedError("gradients are on; accepted with offloaded weights: a call under torch.no_grad().")
        with self._buffers.on_device(self._number) as buffer:
            _point(self._mlp, buffer)
            try:
                return self._forward(*args, **kwargs)
            finally:
                _point(self._mlp, self._buffers.host[self._number])


# --- weights, and where they lie --------------------------------------------------------------------------------


def _weights(mlp: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight


def _views(buffer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[3F, H], neuron by neuron, as weights in the shapes that nn.Linear gives them."""
    gate, up, down = buffer.chunk(3)
    return gate, up, down.T


def _point(mlp: Any, buffer: torch.Tensor) -> None:
    for weight, view in zip(_weights(mlp), _views(buffer), strict=True):
        weight.data = view


def _host_block(mlp: Any, layers: int) -> torch.Tensor:
    """[layers, 3F, H] for FFNs like this one; the system gives memory page by page, as it is filled."""
    neurons, hidden = mlp.gate_proj.weight.shape
    return torch.empty(layers, 3 * neurons, hidden, dtype=mlp.gate_proj.weight.dtype, device=HOST)


def _move_into(home: torch.Tensor, mlp: Any, restore: ExitStack) -> None:
    for weight, view in zip(_weights(mlp), _views(home), strict=True):
        restore.callback(_move_out, weight, weight.device, weight.stride())
        weight.data = view.copy_(weight.detach())


@torch.inference_mode(False)
def _move_out(weight: torch.Tensor, device: torch.device, stride: tuple[int, ...]) -> None:
    own = torch.empty_strided(weight.shape, stride, dtype=weight.dtype, device=device)
    weight.data = own.copy_(weight.detach())


def _pin(host: torch.Tensor, restore: ExitStack) -> float:
    """Register the block as it is: memory that torch pins is rounded up to a power of two. Returns the seconds."""
    runtime, portable, started = torch.cuda.cudart(), 1, time.perf_counter()
    failure = int(runtime.cudaHostRegister(host.data_ptr(), host.nbytes, portable))
    if failure:
        raise UnsupportedError(
            f"{host.nbytes / 1e9:.2f} GB of host memory cannot be pinned for FFN weights (CUDA error {failure}); "
            "free host memory, or keep more layers resident."
        )
    restore.callback(runtime.cudaHostUnregister, host.data_ptr())
    return time.perf_counter() - started


def _check_ffns(ffns: Sequence[Any]) -> None:
    if any(getattr(mlp.forward, "__func__", None) is not type(mlp).forward for mlp in ffns):
        raise ConfigError("an FFN's forward is replaced already; accepted: offloaded_ffn once, before coremat.apply.")
    weights = [weight for mlp in ffns for weight in (*_weights(mlp)[:2], _weights(mlp)[2].T)]
    kinds = {f"{str(weight.dtype).removeprefix('torch.')} {tuple(weight.shape)}" for weight in weights}
    if len(kinds) > 1 or not weights[0].is_floating_point():
        raise UnsupportedError(
            f"the FFN weights are {', '.join(sorted(kinds))}; accepted: one shape and one floating-point type."
        )
