"""Random tokens and neurons: as many as would be chosen, and drawn by the seed and the sample alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick, seeded, seeds

from coremat.methods.base import Stage
from coremat.methods.corematching.core_neurons import core_count
from coremat.methods.corematching.core_tokens import CoreTokens
from coremat.methods.corematching.random_tokens import RandomTokens
from coremat.methods.random_neurons import RandomNeurons
from coremat.methods.views import LayerView
from coremat.runtime.choosing import keep_tokens


def view(images: int, size: int, seed: int, samples: list[int], number: int = 2, neurons: int = 50) -> LayerView:
    """One row per sample: one of text, then images of `size` tokens, then one of text."""
    row = [-1] + [n for n in range(images) for _ in range(size)] + [-1]
    image = torch.tensor([row] * len(samples))
    activations = torch.randn(1, len(row), neurons, generator=seeded(seed)).expand(len(samples), -1, -1)
    valid = torch.ones_like(image, dtype=torch.bool)
    return LayerView(number, valid, image, activations=lambda: activations, seeds=lambda: samples)


def kept(method: CoreTokens, layer: LayerView) -> torch.Tensor:
    """bool [B, T]"""
    (stage,) = method.stages(6)
    counted = method.counted_by(stage, layer)
    seen = [int((row >= 0).sum()) for row in layer.image_index]
    return keep_tokens(stage, method.score(stage, layer), counted, layer.image_index, layer.valid, seen)


@quick
@given(seeds, st.integers(1, 3), st.integers(1, 6))
def test_random_tokens_are_as_many_as_the_knee_keeps_and_the_same_for_the_same_sample(seed, images, size):
    layer = view(images, size, seed, [3])
    drawn, knee = kept(RandomTokens(), layer), kept(CoreTokens(), layer)
    assert torch.equal(drawn, kept(RandomTokens(), view(images, size, seed, [3])))
    assert abs(int(drawn.sum()) - int(knee.sum())) <= images - 1  # every image keeps one


def test_random_tokens_differ_between_samples_and_seeds():
    layer = view(1, 64, 0, [1, 2])
    picks = [tuple(row.tolist()) for seed in (0, 1) for row in kept(RandomTokens(tokens=8, seed=seed), layer)]
    assert len(set(picks)) == 4
    assert all(sum(pick) == 8 + 2 for pick in picks)


def test_random_neurons_are_as_many_as_core_ones_ascending_and_drawn_per_layer_and_sample():
    method = RandomNeurons(beta=0.3)
    rows = method.neurons(view(1, 4, 0, [11, 12, 11]))
    assert rows.shape == (3, core_count(50, 0.3)) == (3, method.neuron_count(50))
    assert (rows.diff(dim=1) > 0).all()
    assert 0 <= rows.min() <= rows.max() < 50
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows, method.neurons(view(1, 4, 0, [11, 12, 11], number=3)))
    assert not torch.equal(rows, RandomNeurons(beta=0.3, seed=1).neurons(view(1, 4, 0, [11, 12, 11])))


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
    assert LayerView(1, VALID, VISUAL).voters(voters).int().tolist() == says


def test_scores_are_drawn_for_image_tokens_only():
    scores = RandomTokens().score(Stage(2, "knee"), view(1, 4, 0, [1]))
    assert (scores[0] > 0).tolist() == [False, True, True, True, True, False]
