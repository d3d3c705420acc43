"""From a config to the tokens that stay: who votes, what random means, which rule counts."""

import configs
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick, seeded, seeds

from coremat import SparsityConfig
from coremat.core_neurons import core_count
from coremat.selection import keep_tokens, random_neurons, sample_seeds, voting

BY_SCORE = [name for name, c in configs.CONFIGS.items() if c.prunes_tokens and c.token_score != "random"]
VALID = torch.tensor([[False, False, True, True, True, True], [True, True, True, True, True, True]])
VISUAL = torch.tensor([[-1, -1, -1, 0, 0, -1], [-1, 0, 0, 1, 1, -1]])


@pytest.mark.parametrize(
    ("voters", "says"),
    [
        ("all", [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]),
        ("text", [[0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1]]),
        ("last", [[0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]]),
    ],
)
def test_who_votes(voters, says):
    assert voting(voters, VALID, VISUAL).int().tolist() == says


def layout(seed: int, images: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """visual and valid [1, S]: two of padding, one of text, then images with a text token after each."""
    visual = [-1, -1, -1]
    for number in range(images):
        visual += [number] * size + [-1]
    valid = torch.ones(1, len(visual), dtype=torch.bool)
    valid[0, :2] = False
    return torch.tensor([visual]), valid


def wanted_image_tokens(config: SparsityConfig, scores: list[int], counts: list[int], image: list[int]) -> list[bool]:
    """The rule of each config, from its definition."""
    signed = config.knee == "signed"
    if isinstance(config.tokens, str):
        by_own = config.token_score != "fewest-core-neurons"
        keep = (
            reference.above_knee(scores, signed)
            if by_own
            else reference.highest(scores, sum(reference.above_knee(counts, signed)))
        )
    elif isinstance(config.tokens, int):
        keep = reference.highest(scores, config.tokens)
    else:
        keep = reference.highest(scores, max(1, reference.floor_of(config.tokens, len(scores))))
    return reference.one_per_image(keep, scores, image)


def bent(values: list[int], signed: bool) -> bool:
    return max(reference.chord_distances(sorted(values, reverse=True), signed)) > 0


@pytest.mark.parametrize("name", BY_SCORE)
@quick
@given(seeds, st.integers(1, 3), st.integers(2, 6))
def test_text_stays_and_image_tokens_by_the_rule(name, seed, images, size):
    config = configs.CONFIGS[name]
    visual, valid = layout(seed, images, size)
    counts = torch.randint(0, 12, visual.shape, generator=seeded(seed))
    scores = -counts if config.token_score == "fewest-core-neurons" else counts
    image = visual[0] >= 0
    if not bent(counts[0, image].tolist(), config.knee == "signed"):
        return
    keep = keep_tokens(config, scores, counts, visual, valid, [])
    assert torch.equal(keep[0, ~image], valid[0, ~image])
    rule = wanted_image_tokens(config, scores[0, image].tolist(), counts[0, image].tolist(), visual[0, image].tolist())
    assert keep[0, image].tolist() == rule


@quick
@given(seeds, st.integers(1, 3), st.integers(1, 6))
def test_random_tokens_are_as_many_as_the_knee_keeps_and_the_same_for_the_same_sample(seed, images, size):
    visual, valid = layout(seed, images, size)
    counts = torch.randint(0, 12, visual.shape, generator=seeded(seed))

    def keep(score: str, sample: int) -> torch.Tensor:
        config = SparsityConfig(token_score=score)
        own = counts if score == "core-neurons" else None
        return keep_tokens(config, own, counts, visual, valid, [sample])

    drawn = keep("random", 3)
    knee = keep("core-neurons", 3)
    assert torch.equal(drawn, keep("random", 3))
    assert knee.sum() <= drawn.sum() <= knee.sum() + images - 1  # every image keeps one


def test_random_tokens_differ_between_samples_and_seeds():
    visual, valid = layout(0, 1, 64)
    counts = torch.zeros_like(visual)

    def keep(sample: int, seed: int) -> list[int]:
        config = SparsityConfig(tokens=8, token_score="random", seed=seed)
        return keep_tokens(config, None, counts, visual, valid, [sample])[0].nonzero()[:, 0].tolist()

    assert len({tuple(keep(sample, seed)) for sample in (1, 2) for seed in (0, 1)}) == 4


def test_random_neurons_are_as_many_as_core_ones_ascending_and_drawn_per_layer_and_sample():
    config = SparsityConfig(neurons="random", beta=0.3)
    rows = random_neurons(config, [11, 12, 11], 2, 50)
    assert rows.shape == (3, core_count(50, 0.3))
    assert (rows.diff(dim=1) > 0).all()
    assert 0 <= rows.min() <= rows.max() < 50
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows, random_neurons(config, [11, 12, 11], 3, 50))
    assert not torch.equal(
        rows, random_neurons(SparsityConfig(neurons="random", beta=0.3, seed=1), [11, 12, 11], 2, 50)
    )


def test_a_samples_seed_is_its_own_tokens_and_not_its_padding():
    ids = torch.tensor([[0, 0, 7, 8, 9], [7, 8, 9, 7, 8]])
    alone = sample_seeds(ids[:1, 2:], torch.ones(1, 3, dtype=torch.bool))
    together = sample_seeds(ids, ids != 0)
    assert together[0] == alone[0]
    assert together[0] != together[1]
