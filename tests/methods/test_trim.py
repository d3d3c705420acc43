"""TRIM against loops, on a tiny CLIP beside the tiny LLaVA."""

import math

import pytest
import reference_rivals
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_views import kept
from strategies import quick, seeded, seeds
from tiny_clip import save_tiny_clip

import coremat
from coremat.errors import ConfigError
from coremat.methods.base import Reduction
from coremat.methods.trim import TRIM
from coremat.methods.views import ImageView, Question
from coremat.testing import check_method
from coremat.testing.answers import answer
from coremat.testing.families import FAMILIES
from coremat.testing.families.llava import SIDE, VIEW
from coremat.testing.invariants import tiny


class MadeTower:
    """Patches are where they are, and a text points where its numbers say; further pieces point elsewhere."""

    def patches(self, features):
        return features.float()

    def text(self, text):
        first = torch.tensor([float(word) for word in text.split()])
        return torch.stack([first, -3 * first])


def view(features, words="1 0"):
    return ImageView(features, state=MadeTower(), question=Question({"text": lambda: words}))


def scores(features, words):
    """The softmax of the negated products, in plain numbers."""
    towards = [float(word) for word in words.split()]
    logits = [-sum(a * b for a, b in zip(row, towards, strict=True)) for row in features.tolist()]
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def reference(features, words, keep):
    """{place: row} of what stays."""
    s, rows = scores(features, words), features.tolist()
    order = sorted(range(len(s)), key=lambda place: (-s[place], place))
    if keep is None:
        low, high = (reference_rivals.quartile(sorted(s), share) for share in (0.25, 0.75))
        chosen = order[: max(1, sum(one > high + 1.5 * (high - low) for one in s))]
    else:
        chosen = order[: keep - (1 < keep < len(s))]
    held = {place: rows[place] for place in chosen}
    dropped = [place for place in range(len(s)) if place not in held]
    if dropped and keep != 1:
        held[dropped[-1]] = [sum(rows[j][c] for j in dropped) / len(dropped) for c in range(len(rows[0]))]
    return held


def held(features, reduction: Reduction):
    rows = features if reduction.features is None else reduction.features
    return {place: rows[place].tolist() for place in kept(reduction.keep)}


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for place, row in expected.items():
        assert found[place] == pytest.approx(row, rel=1e-4, abs=1e-5)


@quick
@given(st.integers(1, 40), seeds, st.data())
def test_places_and_mean_are_those_of_the_loops(size, seed, data):
    features = torch.randn(size, 2, generator=seeded(seed)) * data.draw(st.sampled_from([0.1, 1, 3]))
    words = data.draw(st.sampled_from(["1 0", "-2 1", "0 0.5"]))
    keep = data.draw(st.none() | st.integers(1, size))
    found = TRIM().before_projector(view(features, words), keep)
    assert_same(held(features, found), reference(features, words, keep))


def test_patches_that_are_least_like_the_text_stay():
    features = torch.tensor([[3.0, 0], [-2, 0], [1, 0], [-1, 0]])
    assert kept(TRIM().before_projector(view(features), 1).keep) == [1]
    found = TRIM().before_projector(view(features), 3)
    assert held(features, found) == {
        1: [-2, 0],
        2: [2, 0],
        3: [-1, 0],
    }  # the mean of 3 and 1, in the last dropped place


def test_outliers_stay_and_the_mean_is_one_more():
    features = torch.zeros(20, 2)
    features[[4, 9], 0] = -2
    found = TRIM().before_projector(view(features), None)
    assert kept(found.keep) == [4, 9, 19]
    assert kept(TRIM(fence=1e9).before_projector(view(features + 1), None).keep) == [4, 9, 19]


def test_a_flat_map_keeps_one_and_the_mean():
    assert kept(TRIM().before_projector(view(torch.ones(6, 2)), None).keep) == [0, 5]


@pytest.mark.parametrize("size", [1, 4])
def test_where_every_token_stays_there_is_no_mean(size):
    features = torch.randn(size, 2, generator=seeded(size))
    found = TRIM().before_projector(view(features), size)
    assert found.features is None
    assert kept(found.keep) == list(range(size))


@pytest.mark.parametrize("name", ["llava", "llava_next"])
@pytest.mark.parametrize("tokens", ["knee", 5])
def test_every_invariant_holds(name, tokens, tmp_path):
    folder = save_tiny_clip(tmp_path, SIDE if name == "llava" else VIEW)
    findings = list(check_method(TRIM(tokens=tokens, text_tower=folder), [name]))
    reasons = ("how many tokens stay is its own rule",)
    assert not [str(finding) for finding in findings if not finding.ok and finding.detail not in reasons]


def picks(method, questions, batch="an image each"):
    family = FAMILIES["llava"]
    with coremat.apply(tiny(family), method) as session:
        session.questions = questions
        answer(tiny(family), family.batch(batch), 1)
        return [row.kept for row in session.stats]


def test_the_question_decides(tmp_path):
    method = TRIM(tokens=5, text_tower=save_tiny_clip(tmp_path, SIDE))
    first, second = picks(method, ["30 31", "30 31"]), picks(method, ["150 9 77", "30 31"])
    assert first[1] == second[1]
    assert first[0] != second[0]
    assert all(len(row) == 5 for row in first)


def test_the_images_of_a_sequence_have_its_question(tmp_path):
    method = TRIM(tokens=8, text_tower=save_tiny_clip(tmp_path, SIDE))
    [own], [other] = (picks(method, [words], "several images") for words in ("30 31", "150 9 77"))
    assert {place // 16 for place in own} == {place // 16 for place in other} == {0, 1}
    assert own != other


def test_without_questions_it_says_what_to_give(tmp_path):
    method = TRIM(tokens=5, text_tower=save_tiny_clip(tmp_path, SIDE))
    with pytest.raises(ConfigError, match=r"the session has none: set session\.questions to one text per sequence"):
        picks(method, None)
