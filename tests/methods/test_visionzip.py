"""VisionZip against loops, and on images where what is dominant and what is alike is known."""

import pytest
import reference_rivals
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_views import LAYER, held, kept, views, written_view
from strategies import quick
from tiny import BOS, IMAGE, PER_IMAGE, answer, make_inputs

import coremat
from coremat.errors import ConfigError
from coremat.methods.budget import budget
from coremat.methods.visionzip import VisionZip


def visionzip(view, count, **options):
    return VisionZip(tower_layer=LAYER, **options).before_projector(view, count)


@quick
@given(views(), st.data())
def test_places_and_what_they_hold_are_those_of_the_loops(view, data):
    count = data.draw(st.integers(1, len(view.features)))
    cls = None if view.class_token is None else view.class_token.tolist()
    rows = (part.tolist() for part in (view.tower[LAYER].queries, view.tower[LAYER].keys))
    pair = data.draw(st.none() | st.tuples(st.integers(1, 9), st.integers(0, 9)))
    options = {} if pair is None else {"dominant": pair[0], "contextual": pair[1]}
    found = visionzip(view, count, **options)
    wanted = reference_rivals.visionzip(view.features.tolist(), cls, *rows, count, pair or (27, 5))
    assert kept(found.keep) == sorted(wanted)
    for place, row in wanted.items():
        torch.testing.assert_close(held(view, found)[place], torch.tensor(row), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pair", [(162, 30), (108, 20), (54, 10), (27, 5)])
def test_budgets_are_split_as_published(pair):
    assert VisionZip().split(sum(pair)) == pair


def test_one_contextual_token_takes_in_the_mean_of_the_rest():
    """Five heavy patches stay; place 0 is the target of 1 to 4; the class token takes the first dropped place."""
    found = visionzip(written_view([1.0] * 5 + [9.0] * 5), 7)
    assert kept(found.keep) == [0, 1, 5, 6, 7, 8, 9]
    assert found.features[found.keep, 0].tolist() == [0 + 2.5, -1, 5, 6, 7, 8, 9]


def test_others_join_the_target_that_is_most_like_them():
    """Targets 0 and 3 of the six light places; 1 is like 0, and 2, 4 and 5 are like 3."""
    found = visionzip(written_view([1.0] * 6 + [9.0] * 10, likeness=[0, 0.1, 1.9, 2, 2.1, 2.2] + [0.0] * 10), 13)
    assert kept(found.keep) == [0, 1, 3, *range(6, 16)]
    torch.testing.assert_close(found.features[[0, 1, 3], 0], torch.tensor([0 + 1, -1, 3 + 11 / 3]))


def test_a_target_that_is_nobodys_stays_as_it_is():
    view = written_view([1.0] * 6 + [9.0] * 10, likeness=[0.0] + [2.0] * 5 + [0.0] * 10)
    assert visionzip(view, 13).features[[0, 3], 0].tolist() == [0, 3 + 3]


def test_equally_like_goes_to_the_lower_target():
    assert visionzip(written_view([1.0] * 6 + [9.0] * 10), 13).features[[0, 3], 0].tolist() == [0 + 3, 3]


@pytest.mark.parametrize("tokens", [1, 2, 6, 7, 32, 63, 0.1, 0.5])
def test_exactly_the_budget_stays(tokens):
    view = written_view([1.0 + j % 5 for j in range(64)])
    wanted = tokens if isinstance(tokens, int) else int(64 * tokens)
    assert visionzip(view, budget(tokens, 64)).keep.sum() == wanted


def test_a_budget_of_one_is_the_class_token():
    found = visionzip(written_view([1.0, 9.0, 1.0]), 1)
    assert found.features[found.keep, 0].tolist() == [-1]


def test_where_all_stay_nothing_is_merged():
    view = written_view([1.0] * 40)
    found = visionzip(view, 40)
    assert found.keep.all()
    assert found.features is None or torch.equal(found.features, view.features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(dtype):
    """The mean of 257 places of equal features would be rounded away from them in half precision."""
    view = written_view([1.0] * 257 + [9.0] * 5, dtype=dtype)
    view.features[:257] = 3.0
    found = visionzip(view, 7)
    assert found.features.dtype == dtype
    assert found.features[0, 0] == 6.0


# --- the pair ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [(162, 30), (108, 20), (54, 10), (191, 30), (3, 0), (1, 4)])
def test_a_pair_is_the_budget_and_how_it_is_split(pair):
    method = VisionZip(dominant=pair[0], contextual=pair[1])
    (stage,) = method.stages(32)
    assert (stage.after, stage.keep) == (0, sum(pair))
    assert method.split(sum(pair)) == pair


def test_dominant_and_contextual_tokens_are_as_many_as_typed():
    """Two heavy patches and the class token; two of the six light places are targets, which take the rest in."""
    found = visionzip(written_view([1.0] * 6 + [9.0] * 2), 5, dominant=3, contextual=2)
    assert kept(found.keep) == [0, 1, 3, 6, 7]
    assert found.features[[1, 6, 7], 0].tolist() == [-1, 6, 7]


def test_several_images_share_a_pair_out(model):
    with coremat.apply(model, "visionzip:dominant=4:contextual=2") as session:
        answer(model, make_inputs([BOS, IMAGE, 33, IMAGE, 34]), new=1)
        (row,) = session.stats
    assert [sum(place // PER_IMAGE == image for place in row.kept) for image in (0, 1)] == [3, 3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dominant": 5}, "dominant is 5 and contextual None; accepted: both counts, or neither."),
        ({"contextual": 5}, "dominant is None and contextual 5; accepted: both counts, or neither."),
        ({"dominant": 5, "contextual": -1}, "contextual is -1; accepted: a whole number, at least 0."),
        ({"dominant": 0, "contextual": 5}, "dominant is 0; accepted: a whole number, at least 1, none."),
        ({"dominant": 5, "contextual": 2, "tokens": 8}, "tokens is 8 beside 5 .* accepted: 7, or leave it out."),
    ],
)
def test_what_is_no_pair_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        VisionZip(**options)


def test_a_budget_that_is_the_pairs_own_may_be_typed():
    assert VisionZip(dominant=5, contextual=2, tokens=7).stages(6)[0].keep == 7
