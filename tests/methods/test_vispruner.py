"""VisPruner against loops: the important tokens, and the rest halved and thinned until the budget is met."""

import math

import pytest
import reference_rivals
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_views import LAYER, image_view, kept, views
from strategies import quick, seeded

from coremat.methods.vispruner import VisPruner, least_duplicated
from coremat.testing import check_method


def vispruner(view, count, **options):
    return kept(VisPruner(tower_layer=LAYER, **options).before_projector(view, count).keep)


def reference(view, count, percent):
    """percent: of the budget, that is important."""
    rows = (part.tolist() for part in (view.tower[LAYER].queries, view.tower[LAYER].keys))
    by_head = reference_rivals.attention_on_patches(*rows, len(view.features))
    total = [sum(column) for column in zip(*by_head, strict=True)]
    ranked = sorted(range(len(total)), key=lambda place: (-total[place], place))
    important = count * percent // 100
    rest, diverse = ranked[important:], count - important
    while diverse and len(rest) > diverse:
        rest = thinned(rest, view.features.tolist(), min(8, len(rest) - diverse))
    return sorted(ranked[:important] + rest[:diverse])


def thinned(rest, features, step):
    even = [place for number, place in enumerate(rest) if number % 2 == 0]
    odd = [place for number, place in enumerate(rest) if number % 2 == 1]
    alike = {place: max(reference_rivals.cosine(features[place], features[other]) for other in odd) for place in even}
    return sorted(even, key=lambda place: -alike[place])[step:] + odd


@quick
@given(views(), st.data())
def test_places_are_those_of_the_loops(view, data):
    count = data.draw(st.integers(1, len(view.features)))
    percent = data.draw(st.sampled_from([1, 29, 50, 57, 75, 100]))
    assert vispruner(view, count, important=percent / 100) == reference(view, count, percent)


@pytest.mark.parametrize(("places", "count"), [(120, 27), (120, 1), (121, 33), (35, 2), (3, 2), (2, 1), (1, 1)])
def test_places_of_large_odd_and_tiny_budgets(places, count):
    random = seeded(places + count)
    queries, keys = torch.randn(2, places + 1, 2, 8, generator=random)
    view = image_view(torch.randn(places, 16, generator=random), torch.zeros(16), queries, keys)
    found = vispruner(view, count)
    assert len(found) == count
    assert found == reference(view, count, 50)


def on_a_circle(*angles):
    return torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles])


@pytest.mark.parametrize(
    ("count", "left"), [(5, [0, 1, 2, 3, 4]), (4, [4, 0, 1, 3]), (3, [0, 1, 3]), (1, [3]), (0, [])]
)
def test_even_ones_that_are_most_like_an_odd_one_go_and_the_others_come_first(count, left):
    """Most like an odd one are 2, then 4, then 0; all three may go in one step, and after them 1 of the list [1, 3]."""
    features = on_a_circle(0.0, 1.0, 2.0, 2.1, 2.9)
    assert least_duplicated(features, torch.arange(5), count).tolist() == left


def test_eight_go_at_a_time():
    """Nine even places are as odd ones. Eight go; of [16, 1, 3, 5 ...] the even are 16, 3, 7 ..., of which 16 goes."""
    assert least_duplicated(torch.ones(18, 1), torch.arange(18), 9).tolist() == [3, 7, 11, 15, 1, 5, 9, 13, 17]


def test_of_equally_duplicated_tokens_the_earlier_goes():
    assert least_duplicated(torch.ones(6, 1), torch.tensor([5, 4, 3, 2, 1, 0]), 4).tolist() == [1, 4, 2, 0]


@pytest.mark.parametrize(("count", "share", "important"), [(100, 0.29, 29), (128, 0.5, 64), (3, 0.5, 1), (1, 0.5, 0)])
def test_the_important_part_is_rounded_down_exactly(count, share, important):
    """Attention falls from place to place, and all features are one: the first place of the rest is deleted."""
    places = 2 * count
    keys = torch.zeros(places + 1, 1, 2)
    keys[1:, 0, 0] = -torch.arange(places) / places
    view = image_view(torch.ones(places, 4), torch.zeros(4), torch.ones_like(keys), keys)
    found = vispruner(view, count, important=share)
    assert found[:important] == list(range(important))
    assert important not in found


@pytest.mark.parametrize("tokens", [1, 5, 0.5])
def test_every_invariant_holds(tokens):
    findings = list(check_method(VisPruner(tokens=tokens), ["llava"]))
    assert not [str(finding) for finding in findings if not finding.ok]
