"""What a method is calibrated on: every token that the dense model read to go on with an answer, and no other."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pytest
import torch
from tiny import batch, make_inputs, tiny_llava

import coremat
from coremat.errors import ConfigError, DataError, UnsupportedError
from coremat.methods.calibrated import Calibrated, LayerSample
from coremat.methods.registry import parse
from coremat.models.families import adapter_for
from coremat.runtime.calibration import calibrate, check_calibration
from coremat.testing import check_method
from coremat.testing.families import FAMILIES

PROMPTS = [[1, 30, "image", 31, 32], [1, 33, "image", 36], [1, 40, 41, 42], [1, 43, "image", 44, 45, 46]]


@dataclass(frozen=True, kw_only=True)
class Keeps(Calibrated):
    """Hands back what it is given."""

    sampled = ("gate_proj", "q_proj", "o_proj", "down_proj")

    def calibrate(self, layers: Iterable[LayerSample]) -> Mapping[str, torch.Tensor]:
        found = {}
        for layer in layers:
            found |= {f"{layer.number} {name}": value for name, value in layer.inputs.items()}
            found[f"{layer.number} activations"] = torch.cat([layer.activations(held) for held in (False, True)])
            found["held out"] = layer.held_out
        return found


def read_alone(model, prompts, new):
    """By layer and matrix, what each prompt's answer reads when it is given alone: [n, in], prompt after prompt."""
    adapter, seen = adapter_for(model), {}

    def keep(key):
        def hook(module, args):
            if args[0].shape[1] == 1:
                seen.setdefault(key, []).append(args[0][0, 0].clone())

        return hook

    handles = [
        linear.register_forward_pre_hook(keep(f"{number} {name}"))
        for number, layer in enumerate(adapter.layers)
        for name, linear in adapter.linears(layer).items()
        if name in Keeps.sampled
    ]
    lengths = []
    for prompt in prompts:
        inputs = make_inputs(prompt)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=new)[0, inputs["input_ids"].shape[1] :].tolist()
        lengths.append(len(ids) - 1)
    for handle in handles:
        handle.remove()
    return {key: torch.stack(values) for key, values in seen.items()}, lengths


def ending(model, prompts, new):
    """A model whose answer to the first prompt ends early: by an id that it gives there."""
    inputs = make_inputs(prompts[0])
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=new)[0, inputs["input_ids"].shape[1] :]
    model.generation_config.eos_token_id = int(ids[new // 2])
    return model


@pytest.mark.parametrize("ends", [False, True])
def test_a_batch_gives_the_tokens_that_each_prompt_gives_alone(ends):
    model = tiny_llava()
    if ends:
        ending(model, PROMPTS, 14)
    expected, lengths = read_alone(model, PROMPTS, 14)
    assert (min(lengths) < 13) == ends
    made = calibrate(model, Keeps(), [make_inputs(*PROMPTS[:3]), make_inputs(PROMPTS[3])], new_tokens=14)
    assert made.about["tokens"] == sum(lengths)
    for key, values in expected.items():
        torch.testing.assert_close(made.tensors[key], values, rtol=1e-4, atol=1e-5)
    held = [row == 3 for row, length in enumerate(lengths) for _ in range(length)]
    assert made.tensors["held out"].tolist() == held


def test_activations_are_what_down_proj_reads_the_held_out_ones_apart():
    made = calibrate(tiny_llava(), Keeps(), [make_inputs(*PROMPTS)], new_tokens=14).tensors
    down, held = made["2 down_proj"], made["held out"]
    torch.testing.assert_close(made["2 activations"], torch.cat([down[~held], down[held]]), rtol=1e-4, atol=1e-5)


def test_a_sample_is_bounded_seeded_and_the_same_for_every_layer():
    model = tiny_llava()
    whole = calibrate(model, Keeps(), [make_inputs(*PROMPTS)] * 3, new_tokens=14).tensors
    first, again, other = (
        calibrate(model, Keeps(), [make_inputs(*PROMPTS)] * 3, new_tokens=14, tokens=40, seed=seed).tensors
        for seed in (1, 1, 2)
    )
    assert len(first["held out"]) == 40 < len(whole["held out"])
    assert torch.equal(first["0 gate_proj"], again["0 gate_proj"])
    assert not torch.equal(first["0 gate_proj"], other["0 gate_proj"])
    places = [int((whole["0 gate_proj"] == row).all(1).nonzero()[0]) for row in first["0 gate_proj"]]
    for key in ("5 gate_proj", "3 down_proj"):
        torch.testing.assert_close(first[key], whole[key][places], rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was():
    model = tiny_llava()
    calibrate(model, Keeps(), [make_inputs(*PROMPTS)], new_tokens=14)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_too_little_is_refused():
    model = tiny_llava()
    with pytest.raises(DataError, match=r"4 prompts gave answers of 4 tokens .*at least 4 prompts and 32 tokens"):
        calibrate(model, Keeps(), [make_inputs(*PROMPTS)], new_tokens=2)
    with pytest.raises(DataError, match="1 prompts gave answers of 39 tokens"):
        calibrate(model, Keeps(), [batch("one")], new_tokens=40)
    with pytest.raises(DataError, match="0 prompts"):
        calibrate(model, Keeps(), [])
    with pytest.raises(ConfigError, match="new_tokens is 1"):
        calibrate(model, Keeps(), [], new_tokens=1)
    with pytest.raises(ConfigError, match="tokens is 3"):
        calibrate(model, Keeps(), [], tokens=3)


def test_other_methods_and_models_in_use_are_refused(model):
    with pytest.raises(ConfigError, match="fastv takes no calibration"):
        calibrate(model, parse("fastv"), [])
    with coremat.apply(model, "dense"), pytest.raises(ConfigError, match=r"inside coremat\.apply"):
        calibrate(model, parse("cats"), [])


def test_a_model_without_such_ffns_is_refused():
    model = tiny_llava()
    del model.get_decoder().layers[1].mlp.gate_proj
    for name in ("cats", "teal"):
        with pytest.raises(UnsupportedError, match="layer 1"):
            check_calibration(model, parse(name))


def test_of_a_joined_method_the_part_that_needs_it_is_calibrated(model):
    made = calibrate(model, parse("fastv:tokens=5+cats"), [make_inputs(*PROMPTS)], new_tokens=14)
    assert made.about["method"] == "cats"


def test_layers_that_a_batch_leaves_out_are_refused():
    """Cross-attention layers do not run for prompts without an image."""
    family = FAMILIES["mllama"]
    with pytest.raises(DataError, match="with an image in every batch"):
        calibrate(family.model(), parse("cats"), [family.batch("no image")] * 4, new_tokens=14)


@dataclass(frozen=True, kw_only=True)
class Strangers(Calibrated):
    """What somebody else writes: neurons above the median of their own activations, for the whole answer."""

    def calibrate_layer(self, layer):
        return {"size": layer.activations(False).abs().mean(0)}

    def neuron_count(self, size):
        return size // 2

    def neurons(self, layer):
        order = layer.state["size"][layer.number].argsort(descending=True)[: self.neuron_count(160)]
        return order.sort().values[None].to(layer.activations.device)

    def shares_neurons(self):
        return True


def test_a_strangers_method_is_calibrated_and_checked():
    findings = list(check_method(Strangers(), ["llava"]))
    assert not [str(finding) for finding in findings if finding.ok is False]
    assert sum(finding.ok is True for finding in findings) >= 8
