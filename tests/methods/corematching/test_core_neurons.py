"""Eq. 2 to 4 against the loops of `reference.py`, with ties, rows without positives and exact counts."""

from fractions import Fraction

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import activations, alphas, betas, masks, quick, seeds

from coremat.methods.corematching.core_neurons import core_count, core_neurons
from coremat.methods.corematching.votes import token_core_neurons, votes
from coremat.tensors import membership

SHARES = [0.05, 0.1, 0.15, 0.2, 0.29, 0.3, 0.35, 0.4, 0.55, 0.57, 0.6, 0.7, 0.8, 0.95, 1.0]


def indices(row: torch.Tensor) -> list[int]:
    return row.nonzero()[:, 0].tolist()


@quick
@given(activations(), alphas)
def test_each_token_names_its_most_active_neurons(a, alpha):
    chosen = token_core_neurons(a, alpha)
    for row, own in zip(a.flatten(0, 1), chosen.flatten(0, 1), strict=True):
        assert set(indices(own)) == reference.token_core_neurons(row.tolist(), alpha)


@quick
@given(activations(), alphas, seeds)
def test_votes_count_the_tokens_that_may_vote(a, alpha, seed):
    voters = masks(seed, *a.shape[:2])
    for row, says, counts in zip(a, voters, votes(a, alpha, voters), strict=True):
        assert counts.tolist() == reference.votes(row.tolist(), alpha, says.tolist())


@quick
@given(st.lists(st.integers(0, 4), min_size=5, max_size=40), betas)
def test_core_neurons_have_the_most_votes_and_ties_go_to_the_lower_index(counts, beta):
    assert core_neurons(torch.tensor([counts]), beta)[0].tolist() == reference.core_neurons(counts, beta)


@quick
@given(activations(), alphas, betas, seeds)
def test_sequences_of_a_batch_do_not_touch_each_other(a, alpha, beta, seed):
    voters = masks(seed, *a.shape[:2])
    together = core_neurons(votes(a, alpha, voters), beta)
    alone = [core_neurons(votes(a[b : b + 1], alpha, voters[b : b + 1]), beta) for b in range(len(a))]
    assert torch.equal(together, torch.cat(alone))


@quick
@given(activations(), alphas, seeds)
def test_padding_has_no_say_whatever_is_in_it(a, alpha, seed):
    voters = masks(seed, *a.shape[:2])
    other = torch.where(voters[..., None], a, torch.full_like(a, 7.0))
    assert torch.equal(votes(a, alpha, voters), votes(other, alpha, voters))


@pytest.mark.parametrize("alpha", SHARES)
def test_the_ceiling_is_exact_for_every_number_of_positives(alpha):
    size = 500
    ladder = torch.ones(size + 1, size).tril(-1)  # row i has i positives
    wanted = [reference.ceil_of(alpha, i) for i in range(size + 1)]
    assert token_core_neurons(ladder, alpha).sum(-1).tolist() == wanted


@pytest.mark.parametrize("beta", SHARES)
def test_the_floor_is_exact(beta):
    for size in [*range(20, 700), 11008, 13824, 14336, 18944]:
        assert core_count(size, beta) == reference.floor_of(beta, size)


def test_the_papers_table_5_is_beta_of_two_fifths():
    assert core_count(11008, 0.4) == 4403


def test_at_least_one_neuron_is_core():
    assert core_count(4, 0.2) == 1


def test_every_token_that_activates_anything_names_a_neuron_however_small_alpha_is():
    assert token_core_neurons(torch.ones(1, 6), 1e-7).sum() == 1


def test_a_long_decimal_is_taken_as_written():
    beta = 0.3333333333
    assert core_count(3_000, beta) == int(Fraction("0.3333333333") * 3_000) == 999


def test_no_voters_choose_the_first_neurons():
    silent = torch.zeros(1, 3, dtype=torch.bool)
    assert core_neurons(votes(torch.ones(1, 3, 10), 0.2, silent), 0.4).tolist() == [[0, 1, 2, 3]]


@quick
@given(st.lists(st.integers(0, 4), min_size=5, max_size=40), betas)
def test_membership_is_the_list_as_a_mask(counts, beta):
    core = core_neurons(torch.tensor([counts]), beta)
    assert indices(membership(core, len(counts))[0]) == core[0].tolist()
