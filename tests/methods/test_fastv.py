"""FastV's scores against loops and against the attention maps of a real layer; what it leaves in earlier caches."""

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick, seeded, seeds
from tiny import IMAGE_ID, LAYERS, answer, batch, chosen

import coremat
from coremat.methods import fastv
from coremat.methods.base import Stage
from coremat.methods.fastv import FastV
from coremat.methods.views import LayerView

SCALING = 0.5
shapes = st.tuples(st.integers(1, 3), st.sampled_from([1, 2]), st.sampled_from([1, 2]), st.integers(1, 7))


def made_layer(shape: tuple[int, int, int, int], seed: int) -> tuple[LayerView, torch.Tensor, torch.Tensor]:
    """A view of random queries [B, heads, T, d] and keys [B, kv_heads, T, d], padded on the left."""
    rows, kv, groups, tokens = shape
    random = seeded(seed)
    queries = torch.randn(rows, kv * groups, tokens, 3, generator=random)
    keys = torch.randn(rows, kv, tokens, 3, generator=random)
    padding = torch.randint(0, tokens, (rows, 1), generator=random)
    valid = torch.arange(tokens) >= padding

    def at(columns: torch.Tensor) -> torch.Tensor:
        return queries.gather(2, columns[:, None, :, None].expand(-1, queries.shape[1], -1, 3))

    view = LayerView(1, valid, torch.zeros_like(padding), at, keys=lambda: keys, scaling=lambda: SCALING)
    return view, queries, keys


def received(queries: torch.Tensor, keys: torch.Tensor, valid: list[bool], senders: list[int]) -> list[float]:
    """The attention that each token of one row gets from some query tokens, mean over these and over heads."""
    total = [0.0] * len(valid)
    for sender in senders:
        seen = [real and token <= sender for token, real in enumerate(valid)]
        for head in reference.attention(queries[:, sender].tolist(), keys.tolist(), seen, SCALING):
            total = [sum_ + weight for sum_, weight in zip(total, head, strict=True)]
    return [value / len(senders) / len(queries) for value in total]


@pytest.mark.parametrize("which", ["last", "all"])
@quick
@given(shapes, seeds, st.sampled_from([1, 2, 3, 64]))
def test_scores_are_those_of_the_loops(which, shape, seed, block):
    """However many query tokens are computed at a time."""
    view, queries, keys = made_layer(shape, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastv, "BLOCK", block)
        scores = FastV(queries=which).score(Stage(2, 0.5), view)
    for row, valid in enumerate(view.valid.tolist()):
        real = [token for token, own in enumerate(valid) if own]
        senders = real if which == "all" else real[-1:]
        wanted = torch.tensor(received(queries[row], keys[row], valid, senders))
        torch.testing.assert_close(scores[row][valid], wanted[valid], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("which", ["last", "all"])
@pytest.mark.parametrize("prune_layer", [1, 3])
@pytest.mark.parametrize("name", ["one", "left-padded", "same-length"])
def test_tokens_are_those_of_the_models_own_attention_maps(eager_model, name, prune_layer, which):
    inputs = batch(name)
    with torch.no_grad():
        maps = eager_model(**inputs, output_attentions=True).attentions[prune_layer - 1]
    with coremat.apply(eager_model, FastV(tokens=5, prune_layer=prune_layer, queries=which)) as session:
        answer(eager_model, inputs, new=1)
        keep = chosen(session).keep
    for row, ids in enumerate(inputs["input_ids"]):
        real = inputs["attention_mask"][row].bool()
        senders = maps[row][:, real] if which == "all" else maps[row][:, -1:]
        scores = senders.mean((0, 1))[ids == IMAGE_ID]
        assert keep[row, ids == IMAGE_ID].tolist() == reference.highest(scores.tolist(), 5)


def test_the_two_readings_choose_differently(model):
    kept = {}
    for which in ("last", "all"):
        with coremat.apply(model, FastV(tokens=5, queries=which)) as session:
            answer(model, batch("same-length"), new=1)
            kept[which] = [row.kept for row in session.stats]
    assert kept["last"] != kept["all"]


@pytest.mark.parametrize(("earlier", "columns"), [("full", [20] * 2 + [12] * 4), ("cut", [12] * 6)])
def test_caches_of_the_layers_before(model, earlier, columns):
    """The authors' first K layers keep all; half of 16 image tokens and four of text stay behind them."""
    with coremat.apply(model, FastV(earlier_cache=earlier)) as session:
        cache = answer(model, batch("one"), new=1).cache
    assert [layer.keys.shape[2] for layer in cache.layers] == columns
    assert session.stats[0].cached_per_layer == tuple(columns)
    assert len(columns) == LAYERS
