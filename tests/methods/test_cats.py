"""CATS as the dense model in which small gates are zeroed one by one, and its thresholds against a loop."""

from fractions import Fraction

import pytest
import torch
from calibrations import PROMPTS, calibrated
from tiny import SHAPE, answer, batch

import coremat
from coremat.errors import UnsupportedError
from coremat.ffn import per_token
from coremat.methods.cats import Cats
from coremat.methods.reads import Reads
from coremat.offload.ffn_streaming import offloaded_ffn
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


@pytest.mark.parametrize("name", ["one", "ragged"])
@pytest.mark.parametrize("beta", [0.2, 0.5])
def test_a_token_uses_the_neurons_whose_gate_reaches_the_threshold(model, beta, name):
    method = calibrated(f"cats:beta={beta}")
    cuts = method.setup(model)["thresholds"][:, round(beta * 1000) - 1]
    handles = silenced(model, cuts)
    try:
        expected = answer(model, batch(name))
    finally:
        for handle in handles:
            handle.remove()
    with coremat.apply(model, method) as session:
        found = answer(model, batch(name))
        assert {count for row in session.stats for count in row.neurons_kept} == {int(beta * 160)}
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found.logits, answer(model, batch(name)).logits, atol=1e-3)


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


def test_up_and_down_are_read_by_the_rows_of_a_tokens_neurons(model, monkeypatch):
    """A list for each layer and step of a single sequence, the same one twice; as long as gates say."""
    asked = {"row_products": [], "summed_rows": []}

    def listing(name):
        real = getattr(per_token, name)

        def listed(x, index, rows):
            asked[name].append(index[0].tolist())
            return real(x, index, rows)

        monkeypatch.setattr(per_token, name, listed)

    listing("row_products")
    listing("summed_rows")
    method = calibrated("cats:beta=0.2")
    cuts, seen = method.setup(model)["thresholds"][:, 199].tolist(), []

    def see(module, args, out):
        if out.shape[:-1].numel() == 1:
            large = torch.nn.functional.silu(out).flatten().abs() >= cuts[len(seen) % 6]
            seen.append([n for n, there in enumerate(large.tolist()) if there])

    handles = [layer.mlp.gate_proj.register_forward_hook(see) for layer in model.get_decoder().layers]
    try:
        with coremat.apply(model, method):
            answer(model, batch("one"), new=3)
    finally:
        for handle in handles:
            handle.remove()
    assert len(seen) == 12
    assert all(0 < len(row) < 80 for row in seen)
    assert asked == {"row_products": seen, "summed_rows": seen}


def test_offloaded_weights_are_refused(model):
    method = calibrated("cats:beta=0.5")
    with (
        offloaded_ffn(model, "cpu"),
        pytest.raises(UnsupportedError, match="offloaded; accepted by cats: weights that"),
    ):
        coremat.apply(model, method).__enter__()
