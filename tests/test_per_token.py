"""Neurons that change from token to token."""

import pytest
import torch
from tiny import answer, batch, chosen

import coremat
from coremat import SparsityConfig
from coremat.config import as_fraction
from coremat.engine.per_token import PredictedFFN

ORACLE = SparsityConfig(tokens="all", neurons="oracle", beta=0.4)


def test_the_oracle_is_the_dense_model_with_each_tokens_small_activations_zeroed(model):
    def silence(module, args):
        active = args[0]
        if active.shape[1] > 1:
            return None
        order = active.abs().argsort(dim=-1, descending=True, stable=True)[..., : int(as_fraction(0.4) * 160)]
        return (active * torch.zeros_like(active).scatter_(-1, order, 1),)

    handles = [layer.mlp.down_proj.register_forward_pre_hook(silence) for layer in model.get_decoder().layers]
    try:
        expected = answer(model, batch("ragged"))
    finally:
        for handle in handles:
            handle.remove()
    with coremat.apply(model, ORACLE) as session:
        found = answer(model, batch("ragged"))
        assert all(set(row.neurons_kept) == {64} for row in session.stats)
        assert session.workspace_bytes == 0
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=2e-5)


def test_all_neurons_of_the_oracle_are_the_dense_model(model):
    dense = answer(model, batch("one"))
    with coremat.apply(model, SparsityConfig(tokens="all", neurons="oracle", beta=1.0)):
        assert torch.equal(answer(model, batch("one")).tokens, dense.tokens)


def test_a_predictor_works_at_every_step_and_layer_and_changes_nothing(model, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "coremat.methods.neurons.Predictor.scores",
        lambda self, x: calls.append(x.shape) or torch.rand(*x.shape[:2], 160),
    )
    with coremat.apply(model, SparsityConfig(tokens="all", neurons="predicted", seed=1)) as session:
        predicted = answer(model, batch("one"), new=4)
        sets = chosen(session).neurons
        assert all(isinstance(ffn, PredictedFFN) for ffn in session._ffn)
    assert len(calls) == 3 * 6
    with coremat.apply(model, SparsityConfig(tokens="all", neurons="random", seed=1)) as session:
        drawn = answer(model, batch("one"), new=4)
        assert all(torch.equal(sets[layer], core) for layer, core in chosen(session).neurons.items())
    assert torch.equal(predicted.logits, drawn.logits)


def test_its_weights_count_as_memory(model):
    with coremat.apply(model, SparsityConfig(tokens="all", neurons="predicted")) as session:
        assert session.workspace_bytes == 6 * 4 * 1024 * (64 + 160)


@pytest.mark.parametrize("neurons", ["oracle", "predicted"])
def test_they_go_with_fewer_tokens(model, neurons):
    with coremat.apply(model, SparsityConfig(neurons=neurons, tokens=5)) as session:
        answer(model, batch("ragged"))
        assert session.stats[0].image_tokens_kept == 5
