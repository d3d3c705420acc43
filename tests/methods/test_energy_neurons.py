"""Energy neurons against loops: squared activations of all tokens but the first, and the norms of `down_proj`."""

import math

import pytest
import reference
import torch
from hypothesis import given
from neuron_views import layer_view, layers, voting
from strategies import betas, quick, seeded
from tiny import LAYERS, answer, batch

import coremat
from coremat.errors import UnsupportedError
from coremat.methods.energy_neurons import EnergyNeurons, all_but_first
from coremat.runtime import stages
from coremat.testing import check_method


def energy_neurons(tokens: list[list[float]], norms: list[float], beta: float) -> list[int]:
    """tokens: [T][F], all that are real; norms: [F], of the columns of `down_proj`. Returns the chosen neurons."""
    sums = [0.0] * len(norms)
    for row in tokens[1:]:
        for n, value in enumerate(row):
            sums[n] += value * value * norms[n] ** 2
    chosen = reference.highest(sums, reference.floor_of(beta, len(sums)))
    return [n for n in range(len(sums)) if chosen[n]]


@quick
@given(layers(), betas)
def test_each_sequence_keeps_the_largest_sums_of_squares(layer, beta):
    ones = [1.0] * layer.activations.shape[-1]
    expected = [energy_neurons(tokens, ones, beta) for tokens in voting(layer, layer.valid)]
    assert EnergyNeurons(beta=beta).neurons(layer).tolist() == expected


@quick
@given(layers(), betas)
def test_weights_count_by_the_norms_of_their_columns(layer, beta):
    norms = torch.rand(layer.activations.shape[-1], generator=seeded(1))
    layer.add(down_norms=lambda: norms)
    expected = [energy_neurons(tokens, norms.double().tolist(), beta) for tokens in voting(layer, layer.valid)]
    assert EnergyNeurons(beta=beta, weighted=True).neurons(layer).tolist() == expected


def test_the_first_real_token_is_left_out_wherever_padding_ends():
    valid = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 0, 0]]).bool()
    assert all_but_first(valid).int().tolist() == [[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_the_first_token_does_not_decide_and_large_negative_ones_count():
    sink, second, third = [5000.0, 4000.0, 0.0, 0.0, 0.0], [0.0, 1.0, -3.0, 0.0, 0.0], [0.0, 1.0, 0.0, 2.0, 0.0]
    layer = layer_view(torch.tensor([[sink, second, third]], dtype=torch.bfloat16))
    assert EnergyNeurons().neurons(layer).tolist() == [[2, 3]]


# --- the norms of a model's down_proj -----------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch):
    """The weights whose norms were made."""
    weights, make = [], stages.column_norms

    def counted(weight):
        weights.append(weight)
        return make(weight)

    monkeypatch.setattr(stages, "column_norms", counted)
    return weights


def test_the_norms_are_those_of_the_layers_own_down_proj(model):
    seen = []
    projections = [layer.mlp.down_proj for layer in model.get_decoder().layers]
    handles = [p.register_forward_pre_hook(lambda module, args: seen.append(args[0])) for p in projections]
    try:
        with coremat.apply(model, "energy-neurons:weighted=true") as session:
            answer(model, batch("one"), new=1)
            chosen = {number: core.tolist() for number, core in session.prompt.neurons.items()}
    finally:
        for handle in handles:
            handle.remove()
    for number, (down, activations) in enumerate(zip(projections, seen, strict=True)):
        norms = [math.sqrt(sum(value * value for value in column)) for column in down.weight.T.tolist()]
        assert chosen[number] == [energy_neurons(activations[0].tolist(), norms, 0.4)]


def test_norms_are_made_once_per_layer_and_for_those_who_read_them(model, made):
    with coremat.apply(model, "energy-neurons"):
        answer(model, batch("one"), new=1)
    assert not made
    with coremat.apply(model, "energy-neurons:weighted=true"):
        answer(model, batch("one"), new=2)
        answer(model, batch("left-padded"), new=2)
    assert len(made) == LAYERS


def test_norms_that_are_not_there_are_one_sentence():
    with pytest.raises(UnsupportedError, match="down_norms is read, which LayerView has not here"):
        EnergyNeurons(weighted=True).neurons(layer_view(torch.ones(1, 2, 5)))


@pytest.mark.parametrize("options", [":weighted=true", ":weighted=true:prefill_from=2:beta=0.3"])
def test_other_options_hold_what_every_method_holds(options):
    findings = list(check_method(f"energy-neurons{options}", ["llava", "qwen2_vl"]))
    assert not [str(finding) for finding in findings if finding.ok is False]
    assert any(finding.ok for finding in findings)
