"""TEAL as the dense model with small inputs zeroed, and its greedy path against a loop that tries every matrix."""

from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from calibrations import calibrated
from tiny import SHAPE, answer, batch
from torch import nn

import coremat
from coremat.methods.common.quantiles import thresholds, without_small
from coremat.methods.teal import STEPS, Teal, greedy_path
from coremat.models.families import adapter_for
from coremat.models.shape import FFN, LINEARS

PLACES = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 2, "up_proj": 2, "down_proj": 3}


def test_inputs_below_the_threshold_are_zero_and_one_as_large_stays():
    x = torch.tensor([0.5, -0.49, 0.0, -0.5, 3.0])
    assert without_small(x, torch.tensor(0.5)).tolist() == [0.5, 0.0, 0.0, -0.5, 3.0]


def by_hooks(model, cuts, inputs):
    """The dense model in which inputs below the cut of their layer and matrix are zeroed while decoding."""

    def silence(cut):
        def hook(module, args):
            x = args[0]
            return (torch.where(x.abs() >= cut, x, torch.zeros_like(x)),) if x.shape[1] == 1 else None

        return hook

    adapter = adapter_for(model)
    handles = [
        linear.register_forward_pre_hook(silence(cuts(number, name)))
        for number, layer in enumerate(adapter.layers)
        for name, linear in adapter.linears(layer).items()
    ]
    try:
        return answer(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", ["one", "ragged"])
def test_every_matrix_keeps_the_uniform_share(model, name):
    method = calibrated("teal:beta=0.6")
    tables = method.setup(model)["thresholds"]
    expected = by_hooks(model, lambda number, name: float(tables[number, PLACES[name], 599]), batch(name))
    with coremat.apply(model, method):
        found = answer(model, batch(name))
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found.logits, answer(model, batch(name)).logits, atol=1e-3)


@pytest.mark.parametrize("name", ["one", "ragged"])
def test_a_greedy_share_is_that_of_the_ffn_together_and_leaves_attention_alone(model, name):
    method = calibrated("teal:beta=0.6:allocation=greedy")
    state = method.setup(model)
    path, step = state["path"], 24  # of 60: 0.6 is left
    assert torch.allclose(path[:, step].mean(1), torch.tensor(0.6))

    def cut(number, name):
        share = float(path[number, step, FFN.index(name)]) if name in FFN else 0.6
        return float(state["thresholds"][number, PLACES[name], round(share * 1000) - 1])

    expected = by_hooks(model, cut, batch(name))
    with coremat.apply(model, method):
        found = answer(model, batch(name))
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)


def test_the_greedy_path_gives_up_what_changes_the_output_least():
    torch.manual_seed(0)
    mlp = SimpleNamespace(
        gate_proj=nn.Linear(6, 9), up_proj=nn.Linear(6, 9), down_proj=nn.Linear(9, 6), act_fn=nn.SiLU()
    )
    x = torch.randn(11, 6)
    with torch.no_grad():
        active = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
        tables = {
            "gate_proj": thresholds(x.abs()),
            "up_proj": thresholds(x.abs()),
            "down_proj": thresholds(active.abs()),
        }
        path, errors = greedy_path(mlp, x, tables)
        expected, lost = loop(mlp, x, tables)
    assert (path * STEPS).round().int().tolist() == expected
    torch.testing.assert_close(errors, torch.tensor(lost))
    assert path.shape == (3 * (STEPS - 1) + 1, 3)


def loop(mlp, x, tables):
    def output(left):
        cuts = [float(tables[name][round(part / STEPS * 1000) - 1]) for name, part in zip(FFN, left, strict=True)]
        gate, up = zeroed(x, cuts[0]), zeroed(x, cuts[1])
        return mlp.down_proj(zeroed(mlp.act_fn(mlp.gate_proj(gate)) * mlp.up_proj(up), cuts[2]))

    def zeroed(values, cut):
        return torch.tensor([[value if abs(value) >= cut else 0.0 for value in row] for row in values.tolist()])

    dense, left = output([STEPS] * 3), [STEPS] * 3
    path, errors = [list(left)], [0.0]
    while left != [1, 1, 1]:
        tries = []
        for number in range(3):
            if left[number] > 1:
                fewer = list(left)
                fewer[number] -= 1
                error = float(((output(fewer) - dense) ** 2).sum() / (dense**2).sum())
                tries.append((error, number, fewer))
        error, _, left = min(tries)
        path.append(left)
        errors.append(error)
    return path, errors


@pytest.mark.parametrize(("beta", "step"), [(1.0, 0), (0.5, 30), (0.051, 57), (0.001, 57)])
def test_a_share_is_a_step_of_the_path(beta, step):
    path, errors = torch.rand(2, 58, 3), torch.rand(2, 58)
    figures = Teal(beta=beta).figures({"path": path, "errors": errors})
    assert torch.equal(figures["FFN error (greedy)"], errors[:, step])
    assert torch.equal(figures["down_proj (greedy)"], path[:, step, 2])


def test_every_matrix_is_read_by_its_share():
    reads = Teal(beta=0.3).reads(0, SHAPE)
    assert {getattr(reads, name) for name in LINEARS} == {Fraction(3, 10)}


def test_columns_of_small_inputs_are_not_read(model, monkeypatch):
    """The columns that decode steps of a single sequence ask for are those of inputs as large as the threshold."""
    asked, large = [], []
    real = torch.nn.functional.embedding_bag

    def counting(index, rows, *args, **options):
        asked.append(index.tolist())
        return real(index, rows, *args, **options)

    def without(x, threshold, real=without_small):
        if len(x) == 1:
            large.append([n for n, value in enumerate(x[0].tolist()) if abs(value) >= float(threshold)])
        return real(x, threshold)

    monkeypatch.setattr("torch.nn.functional.embedding_bag", counting)
    monkeypatch.setattr("coremat.methods.teal.without_small", without)
    with coremat.apply(model, calibrated("teal:beta=0.3")):
        answer(model, batch("one"), new=3)
    assert len(large) == 2 * 6 * 7
    assert asked == large
