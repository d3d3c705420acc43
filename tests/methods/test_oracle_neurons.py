"""Oracle neurons against loops, and as the dense model in which each token's small activations are zeroed."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import highest
from strategies import activations, quick
from tiny import answer, batch

import coremat
from coremat.methods.budget import as_fraction
from coremat.methods.oracle_neurons import oracle_neurons

ORACLE = "oracle-neurons:beta=0.4"


@quick
@given(activations(), st.data())
def test_each_token_has_its_own_largest_activations(a, data):
    count = data.draw(st.integers(1, a.shape[-1]))
    for tokens, rows in zip(oracle_neurons(a, count), a, strict=True):
        for chosen, row in zip(tokens, rows, strict=True):
            assert chosen.tolist() == highest([abs(value) for value in row.tolist()], count)


def test_large_negative_ones_count_and_ties_go_to_the_lower_index():
    a = torch.tensor([[[0.5, -3.0, 1.0, -1.0, 1.0]]])
    assert oracle_neurons(a, 2).tolist() == [[[False, True, True, False, False]]]


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
    with coremat.apply(model, "oracle-neurons:beta=1.0"):
        assert torch.equal(answer(model, batch("one")).tokens, dense.tokens)


def test_they_go_with_fewer_tokens(model):
    with coremat.apply(model, f"core-tokens:tokens=5+{ORACLE}") as session:
        answer(model, batch("ragged"))
        assert session.stats[0].image_tokens_kept == 5
