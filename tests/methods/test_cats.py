"""CATS as the dense model in which small gates are zeroed one by one, and its thresholds against a loop."""

from fractions import Fraction

import pytest
import torch
from calibrations import PROMPTS, calibrated
from tiny import SHAPE, answer, batch

import coremat
from coremat.methods.cats import Cats
from coremat.methods.reads import Reads
from coremat.runtime.calibration import calibrate


def silenced(model, cuts):
    """Handles that zero, while decoding, each activation whose gate is below the layer's cut."""

    def silence(mlp, cut):
        def hook(module, args):
            x = args[0]
            if x.shape[1] > 1:
                return None
            gate = mlp.act_fn(mlp.gate_proj(x))
            for place in (gate.abs() < cut).nonzero().tolist():
                gate[tuple(place)] = 0
            return mlp.down_proj(gate * mlp.up_proj(x))

        return hook

    found = []
    for layer, cut in zip(model.get_decoder().layers, cuts, strict=True):
        wanted = silence(layer.mlp, float(cut))
        found.append(layer.mlp.register_forward_hook(lambda module, args, out, f=wanted: f(module, args)))
    return found


@pytest.mark.parametrize("beta", [0.2, 0.5])
def test_a_token_uses_the_neurons_whose_gate_reaches_the_threshold(model, beta):
    method = calibrated(f"cats:beta={beta}")
    cuts = method.setup(model)["thresholds"][:, round(beta * 1000) - 1]
    handles = silenced(model, cuts)
    try:
        expected = answer(model, batch("ragged"))
    finally:
        for handle in handles:
            handle.remove()
    with coremat.apply(model, method) as session:
        found = answer(model, batch("ragged"))
        assert {count for row in session.stats for count in row.neurons_kept} == {int(beta * 160)}
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=2e-5)
    assert not torch.allclose(found.logits, answer(model, batch("ragged")).logits, atol=1e-3)


def test_thresholds_are_quantiles_of_the_gates_of_tokens_that_are_not_held_out(model):
    layers = []

    class Looks(Cats):
        def calibrate_layer(self, layer):
            layers.append(layer)
            return super().calibrate_layer(layer)

    made = calibrate(model, Looks(), [batch(name) for name in PROMPTS], new_tokens=12)
    for number, layer in enumerate(layers):
        inputs = layer.inputs["gate_proj"]
        gates = [
            abs(value)
            for x, held in zip(inputs, layer.held_out.tolist(), strict=True)
            if not held
            for value in layer.mlp.act_fn(layer.mlp.gate_proj(x)).tolist()
        ]
        kept = sorted(gates, reverse=True)[: round(0.3 * len(gates))]
        assert float(made.tensors["thresholds"][number, 299]) == pytest.approx(kept[-1], rel=1e-5)
    assert made.tensors["reached"].shape == (6, 1000)


def test_one_calibration_serves_every_share_and_its_figures_are_those_of_the_share(model):
    tables = calibrated("cats:beta=0.5").setup(model)
    figures = Cats(beta=0.25).figures(tables)
    assert torch.equal(figures["threshold"], tables["thresholds"][:, 249])
    assert (figures["share reached"] - 0.25).abs().max() < 0.1


def test_the_gate_is_read_whole():
    share = Fraction(40, 160)
    assert Cats(beta=0.25).reads(0, SHAPE) == Reads(up_proj=share, down_proj=share)
    assert Cats.accuracy_only
