"""Votes counted by partition against the plain way, in every dtype, at every tie."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick, seeded, seeds

from coremat.methods.corematching.bits import BITS
from coremat.methods.corematching.votes import BLOCK, token_core_neurons, votes

ALPHAS = (0.05, 0.2, 0.3, 1.0)


def plainly(activations: torch.Tensor, alpha: float, voters: torch.Tensor) -> torch.Tensor:
    return (token_core_neurons(activations, alpha) & voters[..., None]).sum(1)


def draw(seed: int, *shape: int, dtype: torch.dtype, values: int) -> torch.Tensor:
    """Few different values, so that most cuts fall on a tie; about a third are not positive."""
    drawn = torch.randint(-values // 2, values, shape, generator=seeded(seed))
    return (drawn / values).to(dtype)


@pytest.mark.parametrize("narrow", [0, 10**6])
@quick
@given(
    seeds,
    st.sampled_from(list(BITS)),
    st.sampled_from(ALPHAS),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(2, 30),
)
def test_votes_are_those_of_the_plain_way(narrow, seed, dtype, alpha, rows, tokens, neurons, values):
    activations = draw(seed, rows, tokens, neurons, dtype=dtype, values=values)
    voters = torch.rand(rows, tokens, generator=seeded(seed)) < 0.7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coremat.methods.corematching.votes.NARROW", narrow)
        counted = votes(activations, alpha, voters)
    assert torch.equal(counted, plainly(activations, alpha, voters))


@pytest.mark.parametrize("narrow", [0, 10**6])
def test_more_tokens_than_a_byte_can_count(narrow, monkeypatch):
    monkeypatch.setattr("coremat.methods.corematching.votes.NARROW", narrow)
    activations = torch.ones(1, 2 * BLOCK + 7, 5, dtype=torch.bfloat16)
    everyone = torch.ones(activations.shape[:2], dtype=torch.bool)
    assert votes(activations, 0.4, everyone).tolist() == [[2 * BLOCK + 7] * 2 + [0] * 3]


def test_a_real_width_in_half_precision():
    activations = (torch.randn(1, 20, 11008, generator=seeded(1)) * torch.randn(1, 20, 11008)).bfloat16()
    everyone = torch.ones(1, 20, dtype=torch.bool)
    counted = votes(activations, 0.2, everyone)
    assert torch.equal(counted, plainly(activations, 0.2, everyone))
    ordered = activations.float().sort(descending=True, stable=True).indices
    wanted = [-(-int(n) // 5) for n in (activations > 0).sum(-1)[0]]
    by_sort = torch.zeros(11008, dtype=torch.int64)
    for row, count in zip(ordered[0], wanted, strict=True):
        by_sort[row[:count]] += 1
    assert torch.equal(counted[0], by_sort)


@pytest.mark.parametrize("value", [-1.0, 0.0, -0.0])
def test_tokens_that_activate_nothing_have_no_vote(value):
    silent = torch.full((1, 3, 8), value)
    assert votes(silent, 0.5, torch.ones(1, 3, dtype=torch.bool)).sum() == 0


def test_memory_that_is_not_contiguous():
    activations = draw(3, 2, 40, 6, dtype=torch.float32, values=9).transpose(1, 2)
    voters = torch.ones(2, 6, dtype=torch.bool)
    assert torch.equal(votes(activations, 0.3, voters), plainly(activations, 0.3, voters))
