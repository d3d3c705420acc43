"""DART against loops: pivots by the L1 norm of their keys, and in turn what is least like each of them."""

import pytest
import reference_rivals
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick, seeded, seeds
from tiny import BOS, IMAGE, LAYERS, answer, batch, make_inputs

import coremat
from coremat.methods.base import Stage
from coremat.methods.budget import budget
from coremat.methods.dart import DART
from coremat.methods.views import LayerView
from coremat.runtime.choosing import keep_tokens
from coremat.testing import check_method

prompts = st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(1, 40), st.integers(0, 7))  # padding, text, image


def made_layer(rows, seed: int) -> LayerView:
    """A view of random keys and hidden states; rows: how much padding, text, image and text again each has."""
    width, random = max(map(sum, rows)), seeded(seed)
    image = torch.full((len(rows), width), -1)
    valid = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (_, before, places, behind) in enumerate(rows):
        valid[row, width - before - places - behind :] = True
        image[row, width - places - behind : width - behind] = 0
    keys = torch.randn(len(rows), 2, width, 3, generator=random)
    hidden = torch.randn(len(rows), width, 6, generator=random)
    return LayerView(1, valid, image, keys=lambda: keys, hidden=lambda: hidden)


def kept(method: DART, layer: LayerView) -> list[list[int]]:
    """The image tokens of each row that stay, by the session's own rule."""
    (stage,) = method.stages(LAYERS)
    image = layer.image.sum(1).tolist()
    keep = keep_tokens(stage, method.score(stage, layer), None, layer.image_index, layer.valid, image)
    return [(row & own).nonzero()[:, 0].tolist() for row, own in zip(keep, layer.image, strict=True)]


def reference(method: DART, layer: LayerView, row: int) -> list[int]:
    """All image tokens of a row, those that stay longest first."""
    hidden, keys = layer.hidden[row].tolist(), layer.keys[row].tolist()
    columns = range(len(hidden))
    image = [c for c in columns if layer.image[row, c]]
    norm = {c: sum(abs(x) for head in keys for x in head[c]) for c in columns}

    def largest(among, count):
        return sorted(among, key=lambda c: (-norm[c], c))[:count]

    def like(pivot, c):
        return reference_rivals.cosine(hidden[pivot], hidden[c])

    own = largest(image, method.image_pivots)
    pivots = own + largest([c for c in columns if layer.text[row, c] and c > image[-1]], method.text_pivots)
    chosen, left = list(own), max(0, budget(method.tokens, len(image)) - len(own))
    for turn, pivot in enumerate(pivots):
        quota = left // len(pivots) + (turn < left % len(pivots))
        chosen += sorted((c for c in image if c not in chosen), key=lambda c: like(pivot, c))[:quota]
    rest = [c for c in image if c not in chosen]
    return chosen + sorted(rest, key=lambda c: max(like(pivot, c) for pivot in pivots))


def first(method: DART, layer: LayerView, row: int) -> list[int]:
    return sorted(reference(method, layer, row)[: budget(method.tokens, int(layer.image[row].sum()))])


@quick
@given(st.lists(prompts, min_size=1, max_size=3), seeds, st.data())
def test_tokens_are_those_of_the_loops_in_padded_batches(rows, seed, data):
    layer = made_layer(rows, seed)
    tokens = data.draw(st.integers(1, 45) | st.sampled_from([0.01, 0.2223, 0.5, 1.0]))
    pivots = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    method = DART(tokens=tokens, image_pivots=pivots[0], text_pivots=pivots[1])
    found = kept(method, layer)
    for row, (_, _, places, behind) in enumerate(rows):
        # The last column stays in any case, even if it is an image's.
        last = [] if behind else [layer.image.shape[1] - 1]
        assert found[row] == sorted({*first(method, layer, row), *last})
        assert len(found[row]) <= budget(tokens, places) + len(last)


@quick
@given(st.lists(prompts, min_size=1, max_size=3), seeds, st.integers(1, 45))
def test_scores_go_by_turns_and_then_by_likeness(rows, seed, tokens):
    """Which matters where each of several images keeps its best token, and others give theirs up."""
    layer, method = made_layer(rows, seed), DART(tokens=tokens)
    scores = method.score(Stage(2, tokens), layer).masked_fill(~layer.image, -torch.inf)
    falling = scores.sort(dim=1, descending=True, stable=True).indices.tolist()
    for row, (_, _, places, _) in enumerate(rows):
        assert falling[row][:places] == reference(method, layer, row)


def test_tokens_of_llava_are_as_many_as_published():
    layer = made_layer([(0, 35, 576, 40), (0, 35, 576, 20)], 0)
    found = kept(DART(), layer)
    assert [len(row) for row in found] == [128, 128]
    assert found == [first(DART(), layer, row) for row in (0, 1)]


def written_layer(norms, hidden, image) -> LayerView:
    """One row without padding. norms: of the keys, which are shared out over two heads; hidden: points of the plane."""
    halves = torch.tensor(norms)[None, :, None].expand(2, -1, 2) / 4
    keys = (halves * torch.tensor([1.0, -1.0]))[None]
    place = torch.tensor(image)[None]
    states = torch.tensor(hidden)[None]
    return LayerView(1, torch.ones_like(place, dtype=torch.bool), place, keys=lambda: keys, hidden=lambda: states)


def test_a_pivot_of_the_image_stays_and_then_what_is_least_like_it():
    """Column 2 has the largest keys; column 4 lies opposite it, and 1 across."""
    layer = written_layer(
        [9, 1, 5, 1, 2, 3], [[1, 0], [0, 1], [1, 0], [1, 0.1], [-1, 0], [1, 0.2]], [-1, 0, 0, 0, 0, -1]
    )
    assert kept(DART(tokens=1, image_pivots=1, text_pivots=1), layer) == [[2]]
    assert kept(DART(tokens=2, image_pivots=1, text_pivots=1), layer) == [[2, 4]]


def test_text_counts_behind_the_image_only():
    """Column 0, before it, has the largest keys and would take column 3; the one behind takes column 1."""
    hidden = [[1.0, 0], [1, 0], [0, 1], [0.6, 0.8], [0, -1], [0, 1.0]]
    layer = written_layer([9.0, 1, 5, 1, 2, 3], hidden, [-1, 0, 0, 0, 0, -1])
    assert kept(DART(tokens=3, image_pivots=1, text_pivots=1), layer) == [[1, 2, 4]]


def test_norms_are_sums_of_absolute_values_over_all_heads():
    """L1 norms 4 and 3.9; by L2 it would be the other way round."""
    keys = torch.tensor([[[[1.0, 1.0], [3.9, 0]], [[1.0, 1.0], [0, 0]]]])
    hidden = torch.tensor([[[1.0, 0], [0, 1.0]]])
    there = torch.tensor([[0, 0]])
    layer = LayerView(1, there == 0, there, keys=lambda: keys, hidden=lambda: hidden)
    assert DART(image_pivots=1).score(Stage(2, 1), layer).argmax() == 0


def test_equals_go_to_the_lower_place():
    layer = written_layer([1.0] * 8, [[1.0, 0]] * 8, [-1, 0, 0, 0, 0, 0, 0, -1])
    assert kept(DART(tokens=3, image_pivots=2), layer) == [[1, 2, 3]]


@pytest.mark.parametrize(("earlier", "columns"), [("full", [20] * 2 + [12] * 4), ("cut", [12] * 6)])
def test_caches_of_the_layers_before(model, earlier, columns):
    """The authors' first layers keep all; 8 of 16 image tokens and four of text stay behind them."""
    with coremat.apply(model, DART(tokens=0.5, earlier_cache=earlier)) as session:
        cache = answer(model, batch("one"), new=1).cache
    assert [layer.keys.shape[2] for layer in cache.layers] == columns
    assert session.stats[0].cached_per_layer == tuple(columns)


def test_of_several_images_each_keeps_a_token(model):
    with coremat.apply(model, DART(tokens=2)) as session:
        answer(model, make_inputs([BOS, IMAGE, 33, IMAGE, 34]), new=1)
        (row,) = session.stats
    assert [place // 16 for place in row.kept] == [0, 1]


@pytest.mark.parametrize("tokens", [1, 5, 0.5])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_every_invariant_holds(family, tokens):
    findings = list(check_method(DART(tokens=tokens), [family]))
    assert not [str(finding) for finding in findings if finding.ok is False]
    assert any(finding.ok for finding in findings)
