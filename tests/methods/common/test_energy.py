"""Sums of squares block by block, in float32 at least; the largest scores, ties to the lower index."""

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick, score_lists, seeded
from torch.utils._python_dispatch import TorchDispatchMode

from coremat.methods.common.energy import BLOCK, column_norms, energy, largest


@quick
@given(score_lists, st.data())
def test_the_largest_with_ties_to_the_lower_index(scores, data):
    count = data.draw(st.integers(1, len(scores)))
    chosen = reference.highest(scores, count)
    found = largest(torch.tensor([scores, scores[::-1]]).float(), count)[0]
    assert found.tolist() == [n for n in range(len(scores)) if chosen[n]]


@pytest.mark.parametrize("normalised", [False, True])
def test_more_tokens_than_a_block(normalised):
    activations = torch.randn(2, 2 * BLOCK + 7, 6, generator=seeded(1), dtype=torch.float64)
    voters = torch.rand(activations.shape[:2], generator=seeded(2)) < 0.7
    rows = activations / activations.norm(dim=-1, keepdim=True) if normalised else activations
    expected = torch.stack([row[says].square().sum(0) for row, says in zip(rows, voters, strict=True)])
    torch.testing.assert_close(energy(activations, voters, normalised), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    """2000 is no sum that grows by ones in bfloat16, and 300 has no square in float16."""
    activations = torch.tensor([1.0, 300.0], dtype=dtype).expand(1, 2000, 2)
    found = energy(activations, torch.ones(1, 2000, dtype=torch.bool))
    assert found.dtype == torch.float32
    assert found.tolist() == [[2000.0, 2000.0 * float(activations[0, 0, 1]) ** 2]]


@pytest.mark.parametrize("size", [11, 160, 11008])
def test_neurons_that_are_alike_are_tied_wherever_they_stand(size):
    alike = torch.randn(1, 610, 1, generator=seeded(3)).expand(1, 610, size)
    found = energy(alike, torch.ones(1, 610, dtype=torch.bool))
    assert (found == found[0, 0]).all()


@pytest.mark.parametrize("normalised", [False, True])
def test_the_activations_are_left_alone(normalised):
    activations = torch.randn(1, 5, 6, generator=seeded(4))
    before = activations.clone()
    energy(activations, torch.ones(1, 5, dtype=torch.bool), normalised)
    assert torch.equal(activations, before)


@pytest.mark.parametrize("normalised", [False, True])
def test_no_more_than_a_block_is_held_in_single_precision(normalised):
    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.dtype == torch.float32:
                self.seen = max(self.seen, made.numel())
            return made

    activations, everyone = torch.ones(1, 4 * BLOCK, 8).bfloat16(), torch.ones(1, 4 * BLOCK, dtype=torch.bool)
    with Largest() as single:
        energy(activations, everyone, normalised)
    assert single.seen == BLOCK * 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_norms_of_columns_however_the_weight_lies(dtype):
    weight = torch.randn(7, 2 * BLOCK + 3, generator=seeded(5)).to(dtype)
    expected = weight.double().square().sum(0).sqrt().float()
    for lying in (weight, weight.T.contiguous().T):
        torch.testing.assert_close(column_norms(lying), expected)
