"""The slot `linear`: which forwards a method takes over, when, and what is there afterwards."""

import inspect
from dataclasses import dataclass, field
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from tiny import LAYERS, answer, batch, tiny_llava
from torch import nn
from torch.nn import functional

import coremat
from coremat.errors import UnsupportedError
from coremat.methods.base import Method
from coremat.methods.joined import Joined
from coremat.methods.reads import Reads
from coremat.methods.registry import parse
from coremat.models.families import adapter_for
from coremat.models.shape import LINEARS
from coremat.offload.ffn_streaming import offloaded_ffn
from coremat.runtime.session import session_of


@dataclass(frozen=True)
class EvenInputs(Method):
    """Every second input, of the matrices that are named."""

    names: str = "q_proj down_proj"
    widths: list = field(default_factory=list)
    input_major = True

    def setup(self, model):
        return 2

    def __post_init__(self):
        """Nothing to check."""

    def identity(self):
        return {"name": "even-inputs", "options": {}}

    def linear(self, layer, name, linear, state):
        if name not in self.names.split():
            return None

        def forward(x):
            self.widths.append(x.shape[1])
            even = torch.arange(x.shape[-1]) % state == 0
            return functional.linear(x * even, linear.weight, linear.bias)

        return forward

    def reads(self, layer, shape):
        return Reads(**dict.fromkeys(self.names.split(), Fraction(1, 2)))


def by_hooks(model, names, inputs):
    """The dense model in which odd inputs of these matrices are zeroed while decoding."""

    def silence(module, args):
        x = args[0]
        return (x * (torch.arange(x.shape[-1]) % 2 == 0),) if x.shape[1] == 1 else None

    linears = [adapter_for(model).linears(layer)[name] for layer in model.get_decoder().layers for name in names]
    handles = [linear.register_forward_pre_hook(silence) for linear in linears]
    try:
        return answer(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("names", ["q_proj down_proj", " ".join(LINEARS)])
def test_decode_steps_go_through_it_and_the_prefill_does_not(model, names):
    expected = by_hooks(model, names.split(), batch("ragged"))
    method = EvenInputs(names)
    with coremat.apply(model, method):
        found = answer(model, batch("ragged"))
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert set(method.widths) == {1}
    assert len(method.widths) % (LAYERS * len(names.split())) == 0


def test_only_what_it_takes_over_is_changed_and_all_is_restored(model):
    adapter = adapter_for(model)
    dense = answer(model, batch("one")).logits
    with coremat.apply(model, EvenInputs()):
        for layer in adapter.layers:
            changed = {name for name, linear in adapter.linears(layer).items() if "forward" in linear.__dict__}
            assert changed == {"q_proj", "down_proj"}
            assert adapter.linears(layer)["q_proj"].weight.T.is_contiguous()
            assert not adapter.linears(layer)["k_proj"].weight.T.is_contiguous()
            assert "forward" not in layer.mlp.__dict__
    assert not any(
        "forward" in linear.__dict__ for layer in adapter.layers for linear in adapter.linears(layer).values()
    )
    assert torch.equal(answer(model, batch("one")).logits, dense)


def test_it_goes_with_fewer_tokens_and_keeps_its_own_state(model):
    method = Joined(parse("divprune:tokens=5"), EvenInputs())
    with coremat.apply(model, method):
        assert session_of(model).method.prunes_neurons
        answer(model, batch("one"))
        [stats] = session_of(model).stats
    assert (stats.image_tokens_kept, method.slot) == (5, "before decoder and neurons")
    assert stats.ffn_bytes_per_token == 4 * LAYERS * 64 * (160 + 160 + 80)


def test_a_joined_method_has_every_slot_of_its_parts():
    """What `Method` gained and `Joined` does not hand on would silently be the default."""
    slots = {name for name, value in vars(Method).items() if inspect.isfunction(value) and not name.startswith("_")}
    derived = {"takes", "pruning_stages", "edit_cache", "by_layer"}
    derived.add("calibrate")  # asked of the part that takes one (`runtime.calibration.calibrated_part`)
    assert slots - derived <= vars(Joined).keys()


def test_fused_matrices_are_refused_in_a_sentence():
    model = tiny_llava()
    attention = model.get_decoder().layers[2].self_attn
    attention.qkv_proj = nn.Linear(64, 128)
    del attention.q_proj, attention.k_proj, attention.v_proj
    message = r"layer 2 of Llava.* has no q_proj, k_proj, v_proj in its LlamaAttention; accepted: attention with q_proj"
    with pytest.raises(UnsupportedError, match=message), coremat.apply(model, EvenInputs()):
        pass


def test_wrapped_and_offloaded_matrices_are_refused(model):
    with offloaded_ffn(model, "cpu"), pytest.raises(UnsupportedError, match=r"weights of layer 0 .* are offloaded"):
        coremat.apply(model, EvenInputs()).__enter__()
    wrapped = tiny_llava()
    layer = wrapped.get_decoder().layers[1]
    layer.self_attn.o_proj = nn.Sequential(layer.self_attn.o_proj)
    with pytest.raises(UnsupportedError, match=r"o_proj in layer 1 of Llava.* is a Sequential with weights of None"):
        coremat.apply(wrapped, EvenInputs()).__enter__()
    hooked = tiny_llava()
    hooked.get_decoder().layers[3].mlp.up_proj._hf_hook = SimpleNamespace()
    with pytest.raises(UnsupportedError, match=r"weights of layer 3 .* are offloaded"):
        coremat.apply(hooked, EvenInputs()).__enter__()
