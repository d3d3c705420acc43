"""PowerInfer's time: the work of a predictor at every step and layer, and random rows."""

import torch
from tiny import answer, batch, chosen

import coremat
from coremat.methods.powerinfer import PredictedFFN, Predictor


def test_a_predictor_is_two_matrices_with_a_relu_between():
    predictor, x = Predictor(6, 20, rank=4), torch.randn(2, 3, 6)
    inner, outer = predictor.inner.weight, predictor.outer.weight
    wanted = torch.einsum("fr,bqr->bqf", outer, torch.einsum("rh,bqh->bqr", inner, x).clamp(min=0))
    torch.testing.assert_close(predictor.scores(x), wanted)
    assert sum(weight.numel() for weight in predictor.parameters()) == 6 * 4 + 4 * 20


def test_a_seed_makes_the_same_predictor_and_half_precision_goes_through():
    first, second, other = (Predictor(6, 20, rank=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.outer.weight, second.outer.weight)
    assert not torch.equal(first.outer.weight, other.outer.weight)
    assert first.to(torch.bfloat16).scores(torch.ones(1, 1, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_predictor_works_at_every_step_and_layer_and_changes_nothing(model, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "coremat.methods.powerinfer.Predictor.scores",
        lambda self, x: calls.append(x.shape) or torch.rand(*x.shape[:2], 160),
    )
    with coremat.apply(model, "powerinfer:beta=0.4:seed=1") as session:
        predicted = answer(model, batch("one"), new=4)
        sets = chosen(session).neurons
        assert all(isinstance(ffn, PredictedFFN) for ffn in session._ffn)
    assert len(calls) == 3 * 6
    with coremat.apply(model, "random-neurons:seed=1") as session:
        drawn = answer(model, batch("one"), new=4)
        assert all(torch.equal(sets[layer], core) for layer, core in chosen(session).neurons.items())
    assert torch.equal(predicted.logits, drawn.logits)


def test_its_weights_count_as_memory(model):
    with coremat.apply(model, "powerinfer") as session:
        assert session.workspace_bytes == 6 * 4 * 1024 * (64 + 160)


def test_they_go_with_fewer_tokens(model):
    with coremat.apply(model, "core-tokens:tokens=5+powerinfer") as session:
        answer(model, batch("ragged"))
        assert session.stats[0].image_tokens_kept == 5
        assert set(session.stats[0].neurons_kept) == {32}
