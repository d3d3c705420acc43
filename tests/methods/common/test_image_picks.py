"""Which image tokens stay, by scores: against loops, with ties and images that would lose all."""

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick, score_lists

from coremat.methods.common.picks import best_of_each, best_with_each_image, highest, with_each_image


@st.composite
def scored_images(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Scores of the tokens of one to four images, and the image of each, ascending."""
    scores = draw(score_lists)
    numbers = st.lists(st.integers(0, 3), min_size=len(scores), max_size=len(scores))
    image = sorted(draw(numbers))
    order = sorted(set(image))
    return scores, [order.index(number) for number in image]


@quick
@given(score_lists, st.integers(1, 35))
def test_highest_breaks_ties_by_the_lower_index(scores, count):
    assert highest(torch.tensor(scores), count).tolist() == reference.highest(scores, count)


@quick
@given(scored_images())
def test_the_best_token_of_each_image(drawn):
    scores, image = drawn
    best = best_of_each(torch.tensor(scores), torch.tensor(image))
    assert best.tolist() == reference.one_per_image([False] * len(scores), scores, image)


@quick
@given(scored_images(), st.data())
def test_every_image_keeps_its_best_token(drawn, data):
    scores, image = drawn
    keep = data.draw(st.lists(st.sampled_from([False, False, True]), min_size=len(scores), max_size=len(scores)))
    kept = with_each_image(torch.tensor(keep), torch.tensor(scores), torch.tensor(image))
    assert kept.tolist() == reference.one_per_image(keep, scores, image)


@quick
@given(scored_images(), st.integers(1, 35), st.booleans())
def test_a_budget_is_spent_exactly_and_on_the_best_beside_one_of_each(drawn, count, negative):
    scores, image = drawn
    scores = [-score for score in scores] if negative else scores
    kept = best_with_each_image(torch.tensor(scores), count, torch.tensor(image))
    assert kept.tolist() == reference.best_with_each_image(scores, count, image)
    assert kept.sum() == min(len(scores), max(count, len(set(image))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_scores_of_every_kind(dtype):
    """The second image's best, and the best two of the first."""
    scores = torch.tensor([5, 7, 6, 1, 2, 1]).to(dtype)
    image = torch.tensor([0, 0, 0, 1, 1, 1])
    assert best_with_each_image(scores, 3, image).tolist() == [False, True, True, False, True, False]


def test_scores_so_large_that_one_more_is_the_same_number():
    scores, image = torch.tensor([2.0**25, 2.0**25, 1.0, 0.5]), torch.tensor([0, 0, 1, 1])
    assert best_with_each_image(scores, 2, image).tolist() == [True, False, True, False]
