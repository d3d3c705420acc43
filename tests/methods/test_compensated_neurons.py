"""Neurons by energy in prompt and calibration against loops; decoding as the dense model with the others held at their
mean."""

import pytest
import torch
from calibrations import PROMPTS, calibrated
from tiny import answer, batch

import coremat
from coremat.methods.compensated_neurons import CompensatedNeurons
from coremat.runtime.calibration import calibrate

SPEC = "compensated-neurons:beta=0.4"


def activations(mlp, x):
    return mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)


def test_a_calibration_holds_what_a_loop_over_its_tokens_finds(model):
    layers = []

    class Looks(CompensatedNeurons):
        def calibrate_layer(self, layer):
            layers.append(layer)
            return super().calibrate_layer(layer)

    made = calibrate(model, Looks(), [batch(name) for name in PROMPTS], new_tokens=12).tensors
    for number, layer in enumerate(layers):
        rows = [activations(layer.mlp, x).tolist() for x in layer.inputs["gate_proj"]]
        held = layer.held_out.tolist()
        known = [row for row, out in zip(rows, held, strict=True) if not out]
        judged = [row for row, out in zip(rows, held, strict=True) if out]
        norms = [sum(a * a for a in row) ** 0.5 for row in known]
        for neuron in (0, 7, 159):
            mean = sum(row[neuron] for row in known) / len(known)
            energy = sum((row[neuron] / norm) ** 2 for row, norm in zip(known, norms, strict=True)) / len(known)
            assert float(made["mean"][number, neuron]) == pytest.approx(mean, rel=1e-4, abs=1e-7)
            assert float(made["energy"][number, neuron]) == pytest.approx(energy, rel=1e-4)
        means = made["mean"][number].tolist()
        left = sum((a - m) ** 2 for row in judged for a, m in zip(row, means, strict=True))
        whole = sum(a * a for row in judged for a in row)
        assert float(made["fixed"][number]) == pytest.approx(1 - left / whole, abs=1e-4)


def chosen_by_loop(model, inputs, state, counts):
    """Of each layer and sequence, the neurons with the largest sum of both energies; the first token has no say."""
    seen, handles = [], []
    for layer in model.get_decoder().layers:
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0])))
    model(**inputs)
    for handle in handles:
        handle.remove()
    found = []
    for number, (rows, count) in enumerate(zip(seen, counts, strict=True)):
        sets = []
        for row, mask in zip(rows, inputs["attention_mask"], strict=True):
            tokens = [a for a, valid in zip(row.tolist(), mask.tolist(), strict=True) if valid][1:]
            scores = state["energy"][number].tolist()
            for token in tokens:
                square = sum(a * a for a in token)
                scores = [score + a * a / square / len(tokens) for score, a in zip(scores, token, strict=True)]
            order = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
            sets.append(sorted(order[:count]))
        found.append(sets)
    return found


@pytest.mark.parametrize("name", ["one", "ragged"])
@pytest.mark.parametrize("compensate", [True, False])
def test_the_other_neurons_add_their_mean_while_decoding(model, name, compensate):
    method = calibrated(f"{SPEC}:compensate={str(compensate).lower()}")
    state = method.setup(model)
    own = [method.of_layer(number, 6).neuron_count(160) for number in range(6)]
    assert own[0] == 160
    assert sum(own) <= 0.4 * 160 * 6 < sum(own) + 6, "less in the other layers, so that the sum is that of beta"
    sets = chosen_by_loop(model, batch(name), state, own)

    def hold(number):
        def hook(module, args):
            x = args[0].clone()
            if x.shape[1] > 1:
                return None
            for row, kept in zip(x, sets[number], strict=True):
                others = [n for n in range(160) if n not in set(kept)]
                row[:, others] = state["mean"][number, others] if compensate else 0.0
            return (x,)

        return hook

    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(hold(number))
        for number, layer in enumerate(model.get_decoder().layers)
    ]
    try:
        expected = answer(model, batch(name))
    finally:
        for handle in handles:
            handle.remove()
    with coremat.apply(model, method) as session:
        found = answer(model, batch(name))
        assert [list(row.neurons_kept) for row in session.stats] == [own] * len(session.stats)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found.logits, answer(model, batch(name)).logits, atol=1e-3)


def test_what_the_mean_gives_back_is_printed(model):
    tensors = calibrated(SPEC).setup(model)
    assert list(CompensatedNeurons().figures(tensors)) == ["fixed"]
