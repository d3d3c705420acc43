"""HiRED against loops: how the budget is shared over tiles, and the picks in each."""

from fractions import Fraction

import pytest
import reference_rivals
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_views import kept
from strategies import quick, seeded, seeds

import coremat
from coremat.errors import ConfigError, UnsupportedError
from coremat.methods.hired import HiRED, apportioned, places_in
from coremat.methods.views import WHOLE, ImageView, TowerView
from coremat.testing import check_method
from coremat.testing.answers import answer
from coremat.testing.families import FAMILIES
from coremat.testing.families.llava import PATCHES, TOKENS
from coremat.testing.invariants import tiny

SIDE, LAYER = 4, -2
QUARTERS = [(Fraction(r, 2), Fraction(c, 2), Fraction(r + 1, 2), Fraction(c + 1, 2)) for r in (0, 1) for c in (0, 1)]


def view(random, area=WHOLE, visible=None):
    places = SIDE * SIDE
    tower = {n: TowerView(*torch.randn(2, 1 + places, 2, 3, generator=random), places, visible) for n in (LAYER, 0)}
    return ImageView(
        torch.randn(places if visible is None else len(visible), 8, generator=random), (), tower=tower, area=area
    )


def ranked(image, layer):
    """Its places, those with the most attention of the class token first."""
    tower = image.tower[layer]
    by_head = reference_rivals.attention_on_patches(tower.queries.tolist(), tower.keys.tolist(), tower.places)
    total = [sum(column) for column in zip(*by_head, strict=True)]
    own = range(tower.places) if tower.visible is None else tower.visible.tolist()
    return sorted(range(len(own)), key=lambda number: (-total[own[number]], number))


def shares_by_loops(tiles, keep, alpha):
    whole, *others = tiles
    sizes = [len(tile.features) for tile in others]
    first = max(min(int(alpha * keep), SIDE * SIDE), keep - sum(sizes))
    weights = [0] * len(others)
    for place in ranked(whole, 0)[: int((1 - alpha) * SIDE * SIDE)]:
        row, column = Fraction(2 * (place // SIDE) + 1, 2 * SIDE), Fraction(2 * (place % SIDE) + 1, 2 * SIDE)
        for number, tile in enumerate(others):
            up, left, down, right = tile.area
            weights[number] += up <= row < down and left <= column < right
    weights = weights if sum(weights) else sizes
    quotas = [Fraction((keep - first) * weight, sum(weights)) for weight in weights]
    shares = [min(int(quota), size) for quota, size in zip(quotas, sizes, strict=True)]
    while sum(shares) < keep - first:
        lacks = [quota - own if own < size else None for quota, own, size in zip(quotas, shares, sizes, strict=True)]
        shares[lacks.index(max(lack for lack in lacks if lack is not None))] += 1
    return [first, *shares]


@quick
@given(seeds, st.data())
def test_the_budget_is_shared_as_by_loops(seed, data):
    random = seeded(seed)
    parts = [data.draw(st.sets(st.integers(0, 15), min_size=1)) for _ in QUARTERS]
    tiles = [view(random)]
    tiles += [view(random, area, torch.tensor(sorted(own))) for area, own in zip(QUARTERS, parts, strict=True)]
    keep = data.draw(st.integers(1, sum(len(tile.features) for tile in tiles)))
    alpha = data.draw(st.sampled_from([Fraction(1, 2), Fraction(29, 100), Fraction(1)]))
    found = HiRED(alpha=float(alpha)).share_tiles(tiles, keep)
    assert found == shares_by_loops(tiles, keep, alpha)
    assert sum(found) == keep
    for tile, share in zip(tiles, found, strict=True):
        reduction = HiRED().before_projector(tile, share)
        assert kept(reduction.keep) == sorted(ranked(tile, LAYER)[:share])


def test_a_place_lies_in_the_quarter_of_its_row_and_column():
    """In strips of the flat list, all of these four would be the first's."""
    corner = torch.zeros(16, dtype=torch.bool)
    corner[[0, 1, 2, 3]] = True
    assert places_in(corner, QUARTERS) == [2, 2, 0, 0]
    corner[[7, 12, 15]] = True
    assert places_in(corner, QUARTERS) == [2, 3, 1, 1]


def test_places_on_a_border_are_counted_once():
    """Of three rows the middle one lies on the border of two halves: it is the lower one's."""
    thirds = [
        (Fraction(0), Fraction(0), Fraction(1, 2), Fraction(1)),
        (Fraction(1, 2), Fraction(0), Fraction(1), Fraction(1)),
    ]
    assert places_in(torch.ones(9, dtype=torch.bool), thirds) == [3, 6]


@pytest.mark.parametrize(
    ("count", "weights", "sizes", "shares"),
    [
        (10, [1, 1, 1], [9, 9, 9], [4, 3, 3]),
        (10, [8, 1, 1], [4, 9, 9], [4, 3, 3]),
        (7, [0, 0, 5], [4, 4, 4], [2, 1, 4]),
        (3, [0, 0], [2, 2], [2, 1]),
        (0, [3, 4], [2, 2], [0, 0]),
        (0, [], [], []),
    ],
)
def test_what_floors_and_limits_leave_goes_to_who_lacks_most(count, weights, sizes, shares):
    assert apportioned(count, weights, sizes) == shares


@pytest.mark.parametrize("tokens", [1, 2, 5, 9, 0.2, 0.5])
def test_tiles_are_given_exactly_the_budget_and_newlines_leave(tokens):
    family = FAMILIES["llava_next"]
    model, inputs = tiny(family), family.batch("an image each")
    with coremat.apply(model, HiRED(tokens=tokens)) as session:
        answer(model, inputs, 1)
        rows = session.stats
    for row, (word, patches_in_row, rows_of) in zip(rows, (("image", 2, 4), ("wide image", 4, 2)), strict=True):
        seen = TOKENS[word]
        assert row.image_tokens == seen
        assert row.image_tokens_kept == (tokens if isinstance(tokens, int) else int(tokens * seen))
        newlines = {PATCHES + line * (patches_in_row + 1) + patches_in_row for line in range(rows_of)}
        assert not newlines.intersection(row.kept)


def test_newlines_stay_only_where_the_whole_image_does():
    family = FAMILIES["llava_next"]
    model, inputs = tiny(family), family.batch("one")
    patches = PATCHES + 4 * 2
    for tokens, left in ((patches, patches), (patches + 2, patches), (patches + 4, patches + 4), (1.0, patches + 4)):
        with coremat.apply(model, HiRED(tokens=tokens)) as session:
            answer(model, inputs, 1)
            assert session.stats[0].image_tokens_kept == left


def test_tiles_that_are_all_padding_get_nothing():
    random, nothing = seeded(7), torch.zeros(0, dtype=torch.long)
    tiles = [view(random), *(view(random, (Fraction(0),) * 4, nothing) for _ in range(2))]
    assert HiRED().share_tiles(tiles, 9) == [9, 0, 0]


def test_images_that_count_as_one_have_their_parts_by_size():
    random = seeded(5)
    first = [view(random), *(view(random, area) for area in QUARTERS)]
    second = [view(random), *(view(random, area) for area in QUARTERS)]
    both = HiRED().share_tiles([*first, *second], 31)
    assert both == [*HiRED().share_tiles(first, 16), *HiRED().share_tiles(second, 15)]


@pytest.mark.parametrize("shares", [[1], [9, 0, 0, 0, 0], [3, 3, 3, 3, 3], [-1, 2, 2, 2, 2]])
def test_wrong_shares_are_refused(monkeypatch, shares):
    family = FAMILIES["llava_next"]
    monkeypatch.setattr(HiRED, "share_tiles", lambda self, tiles, keep: shares)
    said = r"hired shares 5 tokens over tiles of \[4, 2, 2, 2, 2\] as"
    with coremat.apply(tiny(family), HiRED(tokens=5)), pytest.raises(UnsupportedError, match=said):
        answer(tiny(family), family.batch("one"), 1)


@pytest.mark.parametrize("bad", [0, 1.5, -0.5, "half"])
def test_bad_options_are_one_sentence(bad):
    with pytest.raises(ConfigError, match=r"alpha is .*; accepted: a number above 0 and up to 1"):
        HiRED(alpha=bad)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("method", ["hired:tokens=1", "fastervlm:tokens=6", "vispruner:tokens=6", "prumerge:tokens=6"])
def test_every_invariant_holds(method, family):
    findings = list(check_method(method, [family]))
    assert not [str(finding) for finding in findings if not finding.ok]
