"""From a stage's scores to the tokens that stay: text and the last token always, image tokens by the stage's rule."""

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick, seeded, seeds

from coremat.errors import UnsupportedError
from coremat.methods.base import Stage
from coremat.runtime.choosing import keep_tokens
from coremat.runtime.input_checks import sample_seeds

KEEPS = ["knee", 1, 5, 0.25, 0.3, 1.0]


def layout(seed: int, images: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The image of each token and what is real, [1, S]: two of padding, one of text, then images with a text token
    after each."""
    visual = [-1, -1, -1]
    for number in range(images):
        visual += [number] * size + [-1]
    valid = torch.ones(1, len(visual), dtype=torch.bool)
    valid[0, :2] = False
    return torch.tensor([visual]), valid


def wanted_image_tokens(
    stage: Stage, scores: list[int], counts: list[int] | None, image: list[int], seen: int
) -> list[bool]:
    """The rule of each stage, from its definition."""
    signed = stage.knee == "signed"
    if stage.keep == "knee":
        by_count = counts is not None and reference.highest(scores, sum(reference.above_knee(counts, signed)))
        return reference.one_per_image(by_count or reference.above_knee(scores, signed), scores, image)
    share = isinstance(stage.keep, float)
    budget = max(1, reference.floor_of(stage.keep, seen)) if share else min(stage.keep, seen)
    return reference.best_with_each_image(scores, budget, image)


def bent(values: list[int], signed: bool) -> bool:
    return max(reference.chord_distances(sorted(values, reverse=True), signed)) > 0


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
@quick
@given(seeds, st.integers(1, 3), st.integers(2, 6), st.integers(0, 20))
def test_text_stays_and_image_tokens_by_the_rule(keep, signed, counted, seed, images, size, gone):
    """gone: image tokens that an earlier stage dropped, of which a share counts too."""
    stage = Stage(2, keep, knee="signed" if signed else "unsigned")
    visual, valid = layout(seed, images, size)
    scores, counts = torch.randint(0, 12, (2, *visual.shape), generator=seeded(seed))
    image = visual[0] >= 0
    curve = counts if counted else scores
    if keep == "knee" and not bent(curve[0, image].tolist(), signed):
        return
    seen = int(image.sum()) + gone
    keep = keep_tokens(stage, scores, counts if counted else None, visual, valid, [seen])
    assert torch.equal(keep[0, ~image], valid[0, ~image])
    own = counts[0, image].tolist() if counted else None
    rule = wanted_image_tokens(stage, scores[0, image].tolist(), own, visual[0, image].tolist(), seen)
    assert keep[0, image].tolist() == rule


def test_the_last_token_stays_even_if_it_is_an_images():
    """The first new token comes out of it; it is beside the budget."""
    image, valid = torch.tensor([[-1, 0, 0, 0]]), torch.ones(1, 4, dtype=torch.bool)
    keep = keep_tokens(Stage(1, 1), torch.tensor([[0, 9, 1, 2]]), None, image, valid, [3])
    assert keep.tolist() == [[True, True, False, True]]


def test_scores_of_text_and_padding_are_never_read():
    image = torch.tensor([[-1, -1, 0, 0, -1]])
    valid = torch.tensor([[False, True, True, True, True]])
    scores = torch.tensor([[torch.nan, torch.inf, 1.0, 2.0, torch.nan]])
    assert keep_tokens(Stage(1, 1), scores, None, image, valid, [2]).tolist() == [[False, True, False, True, True]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    image, valid = torch.tensor([[0, 0, 0, -1]]), torch.ones(1, 4, dtype=torch.bool)
    scores = torch.tensor([[1.0, bad, bad, 0.0]])
    with pytest.raises(UnsupportedError, match="scores of 2 image tokens are NaN or infinite, after decoder layer 1;"):
        keep_tokens(Stage(2, 1), scores, None, image, valid, [3])


def test_a_samples_seed_is_its_own_tokens_and_not_its_padding():
    ids = torch.tensor([[0, 0, 7, 8, 9], [7, 8, 9, 7, 8]])
    alone = sample_seeds(ids[:1, 2:], torch.ones(1, 3, dtype=torch.bool))
    together = sample_seeds(ids, ids != 0)
    assert together[0] == alone[0]
    assert together[0] != together[1]
