"""DivPrune against loops, and on directions where the farthest is known by eye."""

import pytest
import reference_rivals
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_views import kept
from strategies import quick, seeded, seeds

from coremat.methods.budget import budget
from coremat.methods.divprune import divprune


@quick
@given(st.integers(1, 16), seeds, st.data())
def test_chosen_tokens_are_those_of_the_loops(size, seed, data):
    embeddings = torch.randn(size, 5, generator=seeded(seed))
    count = data.draw(st.integers(1, size))
    assert kept(divprune(embeddings, count)) == sorted(reference_rivals.divprune(embeddings.tolist(), count))


@pytest.mark.parametrize(("count", "wanted"), [(1, [4]), (2, [2, 4]), (3, [2, 3, 4]), (4, [0, 2, 3, 4])])
def test_the_loneliest_direction_first_and_then_the_farthest(count, wanted):
    """Degrees 0, 5, 10, 120, 235: the last one's nearest is 115 away; 10 is 135 away from it; 120 is 110 from both."""
    degrees = torch.tensor([0.0, 5, 10, 120, 235]).deg2rad()
    directions = torch.stack([degrees.cos(), degrees.sin()], 1) * torch.tensor([1.0, 9, 2, 0.1, 3])[:, None]
    assert kept(divprune(directions, count)) == wanted


def test_equal_tokens_are_taken_from_the_first_on_and_none_twice():
    assert kept(divprune(torch.tensor([[1.0, 0.0]] * 9), 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("tokens", [1, 7, 40, 0.098, 0.5, 1.0])
def test_exactly_the_budget_stays(tokens):
    embeddings = torch.randn(40, 8, generator=seeded(1))
    wanted = tokens if isinstance(tokens, int) else max(1, int(40 * tokens))
    assert divprune(embeddings, budget(tokens, 40)).sum() == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_full(dtype):
    """Like directions: in half precision many of their distances would be the same."""
    embeddings = (3 + torch.randn(60, 32, generator=seeded(2))).to(dtype)
    wanted = reference_rivals.divprune(embeddings.tolist(), 20)
    assert kept(divprune(embeddings, 20)) == sorted(wanted)
