"""Oracle neurons against loops, and the work of a predictor."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import highest
from strategies import activations, quick

from coremat.methods.neurons import Predictor, oracle_neurons


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
