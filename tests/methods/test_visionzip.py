"""VisionZip against loops, and on images where what is dominant and what is alike is known."""

import pytest
import reference_rivals
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick
from views import kept, views, written_view

from coremat.methods.visionzip import split, visionzip


@quick
@given(views(), st.data())
def test_places_and_what_they_hold_are_those_of_the_loops(view, data):
    budget = data.draw(st.integers(1, len(view.features)))
    found = visionzip(view, budget)
    cls = None if view.cls is None else view.cls.tolist()
    rows = (part.tolist() for part in (view.queries, view.keys))
    wanted = reference_rivals.visionzip(view.features.tolist(), cls, *rows, budget)
    assert kept(found.keep) == sorted(wanted)
    for place, row in wanted.items():
        torch.testing.assert_close(found.features[place], torch.tensor(row), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pair", [(162, 30), (108, 20), (54, 10), (27, 5)])
def test_budgets_are_split_as_published(pair):
    assert split(sum(pair)) == pair


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


@pytest.mark.parametrize("budget", [1, 2, 6, 7, 32, 63, 0.1, 0.5])
def test_exactly_the_budget_stays(budget):
    view = written_view([1.0 + j % 5 for j in range(64)])
    wanted = budget if isinstance(budget, int) else int(64 * budget)
    assert visionzip(view, budget).keep.sum() == wanted


def test_a_budget_of_one_is_the_class_token():
    found = visionzip(written_view([1.0, 9.0, 1.0]), 1)
    assert found.features[found.keep, 0].tolist() == [-1]


def test_where_all_stay_nothing_is_merged():
    view = written_view([1.0] * 40)
    found = visionzip(view, 1.0)
    assert found.keep.all()
    assert torch.equal(found.features, view.features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(dtype):
    """The mean of 257 places of equal features would be rounded away from them in half precision."""
    view = written_view([1.0] * 257 + [9.0] * 5, dtype=dtype)
    view.features[:257] = 3.0
    found = visionzip(view, 7)
    assert found.features.dtype == dtype
    assert found.features[0, 0] == 6.0
