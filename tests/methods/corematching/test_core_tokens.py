"""Eq. 5 and 6 against the loops of `reference.py`, and two hand-made images where the answer is known."""

import pytest
import reference
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import activations, alphas, betas, curves, quick, score_lists

from coremat.methods.common.knee import above_knee, knee
from coremat.methods.corematching.core_neurons import core_neurons
from coremat.methods.corematching.core_tokens import core_neuron_counts
from coremat.methods.corematching.votes import votes
from coremat.tensors import membership

BOTH = pytest.mark.parametrize("signed", [False, True])


def has_a_knee(scores: list[int], signed: bool) -> bool:
    return max(reference.chord_distances(sorted(scores, reverse=True), signed)) > 0


@quick
@given(activations(), alphas, betas)
def test_counts_are_the_core_neurons_that_each_token_activates(a, alpha, beta):
    core = core_neurons(votes(a, alpha, torch.ones(a.shape[:2], dtype=torch.bool)), beta)
    counts = core_neuron_counts(a, membership(core, a.shape[-1]))
    for row, chosen, own in zip(a, core, counts, strict=True):
        assert own.tolist() == reference.core_neuron_counts(row.tolist(), chosen.tolist())


@BOTH
@quick
@given(curves)
def test_knee_is_the_farthest_point_from_the_chord(signed, curve):
    assume(has_a_knee(curve, signed))
    assert knee(torch.tensor(curve), signed) == reference.knee(curve, signed)


@BOTH
@quick
@given(curves)
def test_knee_of_numbers_with_a_point_is_as_exact(signed, curve):
    assume(has_a_knee(curve, signed))
    eighths = [value / 8 for value in curve]
    assert knee(torch.tensor(eighths, dtype=torch.float32), signed) == reference.knee(eighths, signed)


@BOTH
@quick
@given(score_lists)
def test_tokens_at_or_above_the_knee_stay(signed, scores):
    assume(has_a_knee(scores, signed))
    assert above_knee(torch.tensor(scores), signed).tolist() == reference.above_knee(scores, signed)


@BOTH
@quick
@given(st.integers(0, 9), st.integers(1, 40))
def test_a_flat_curve_keeps_everything(signed, level, count):
    assert above_knee(torch.full((count,), level), signed).all()


@quick
@given(st.integers(0, 50), st.integers(1, 9), st.integers(2, 40))
def test_a_straight_curve_is_one_long_tie_and_goes_to_the_lower_index(end, step, count):
    curve = [end + step * i for i in reversed(range(count))]
    assert knee(torch.tensor(curve)) == reference.knee(curve) == 0


def test_two_different_scores_keep_the_better_one():
    assert above_knee(torch.tensor([3, 8])).tolist() == [False, True]


@BOTH
def test_one_token_stays(signed):
    assert above_knee(torch.tensor([0]), signed).tolist() == [True]


@pytest.mark.parametrize("curve", [[4, 2, 1, 1, 0], [0, -2, -3, -3, -4], [8, 8, 4, 0, 0]])
def test_equal_distances_go_to_fewer_tokens(curve):
    distances = reference.chord_distances(curve, signed=False)
    assert distances.count(max(distances)) == 2
    assert knee(torch.tensor(curve)) == distances.index(max(distances))


def test_signed_and_unsigned_part_where_the_curve_bulges():
    bulge = torch.tensor([20, 19, 18, 17, 16, 1, 0])
    assert knee(bulge) == 4
    assert knee(bulge, signed=True) == 5
    assert above_knee(bulge).sum() == 5


def test_signed_knee_of_a_curve_above_its_chord_keeps_everything():
    assert above_knee(torch.tensor([20, 19, 18, 17, 0]), signed=True).all()


def test_knee_is_exact_where_float32_is_not():
    base = 2**25
    curve = [4 * base, base + 1, 0, 0, 0]  # the third point is farther by 4 in 2**28
    assert knee(torch.tensor(curve)) == reference.knee(curve) == 2


@BOTH
@quick
@given(score_lists)
def test_order_of_the_tokens_does_not_matter(signed, scores):
    turned = above_knee(torch.tensor(scores[::-1]), signed).flip(0)
    assert torch.equal(above_knee(torch.tensor(scores), signed), turned)


IMAGE = slice(1, 13)  # after one token of text: an object of four tokens, then eight of ground
SHARED = [(0, 1), (2, 3), (4, 0), (1,), (2,), (3,), (), ()]  # the object's neurons that each ground token has too


def scene(even_ground: bool) -> torch.Tensor:
    """A [1, 13, 20]. Text and object activate neurons 0 to 4, so these get 5 to 7 votes; the ground activates five of
    10 to 19: all its tokens the same five (8 votes each), or each token five others (4 votes each)."""
    a = torch.full((1, 13, 20), -1.0)
    a[0, :5, :5] = 1.0
    for place, shared in enumerate(SHARED):
        own = range(5) if even_ground else range(5 * place, 5 * place + 5)
        a[0, 5 + place, [10 + n % 10 for n in own] + list(shared)] = 1.0
    return a


def kept(a: torch.Tensor, voters: torch.Tensor) -> list[bool]:
    """Which of the 12 image tokens stay, with alpha 1 and five core neurons."""
    core = core_neurons(votes(a, 1.0, voters), 0.25)
    return above_knee(core_neuron_counts(a, membership(core, 20))[0, IMAGE]).tolist()


EVERYONE = torch.ones(1, 13, dtype=torch.bool)
TEXT = torch.arange(13)[None] == 0
OBJECT_ONLY = [True] * 4 + [False] * 8


def test_tokens_that_share_the_objects_core_neurons_stay_and_the_ground_goes():
    assert kept(scene(even_ground=False), EVERYONE) == OBJECT_ONLY


def test_an_even_ground_outvotes_the_object():
    assert kept(scene(even_ground=True), EVERYONE) == [not own for own in OBJECT_ONLY]


def test_the_object_stays_on_even_ground_when_only_text_votes():
    assert kept(scene(even_ground=True), TEXT) == OBJECT_ONLY


def test_a_cliff_after_a_few_tokens_keeps_everything():
    """The knee is then the foot of the cliff, and the paper keeps what is level with it."""
    assert above_knee(torch.tensor([5] * 4 + [0] * 8)).all()
    assert above_knee(torch.tensor([5] * 8 + [0] * 4)).sum() == 8
