"""`session.stats` against what is really in the cache, and one length in all layers."""

import configs
import pytest
import torch
from tiny import IMAGE_ID, LAYERS, NEURONS, answer, batch, chosen

import coremat
from coremat.cost.flops import prefill_flops
from coremat.methods import registry
from coremat.models.families import adapter_for

METHODS = configs.CONFIGS | configs.BEFORE_DECODER


def cached(method, choice, number):
    """bool [B, S]: what a layer's cache holds, for methods of one stage at most."""
    stage = next(iter(method.stages(LAYERS)), None)
    return choice.valid if stage is None or leaves_full(stage, number) else choice.keep


def leaves_full(stage, number):
    return number < stage.after and stage.earlier_cache == "full"


def prefill(model, inputs):
    with torch.no_grad():
        return model(**inputs, use_cache=True).past_key_values


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("prompts", ["one", "left-padded", "ragged"])
def test_all_layers_hold_the_kept_columns_and_nothing_else(model, prompts, name):
    method, inputs = registry.parse(METHODS[name]), batch(prompts)
    with coremat.apply(model, method) as session:
        cache = prefill(model, inputs)
        choice = chosen(session)
    for number, layer in enumerate(cache.layers):
        held = cached(method, choice, number)
        columns = held.shape[1] if held is choice.valid else int(held.sum(1).max())
        assert layer.keys.shape[2] == layer.values.shape[2] == columns
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


def test_the_first_layers_hold_the_dense_keys_and_values_of_the_kept_columns(model):
    inputs = batch("ragged")
    dense = prefill(model, inputs)
    with coremat.apply(model, "corematching:tokens=5:prune_layer=3") as session:
        short = prefill(model, inputs)
        keep = chosen(session).keep
    for number in range(3):
        for part in ("keys", "values"):
            for row in range(3):
                whole, cut = (getattr(cache.layers[number], part)[row] for cache in (dense, short))
                torch.testing.assert_close(cut[:, -int(keep[row].sum()) :], whole[:, keep[row]])


@pytest.mark.parametrize("name", METHODS)
def test_statistics_are_those_of_the_cache_and_the_config(model, name):
    method, inputs = registry.parse(METHODS[name]), batch("ragged")
    with coremat.apply(model, method) as session:
        cache = answer(model, inputs, new=1).cache
        stats, choice = session.stats, chosen(session)
    per_column = [layer.keys[0, :, :1].nbytes + layer.values[0, :, :1].nbytes for layer in cache.layers]
    beta = getattr(getattr(method, "by_neuron", method), "beta", 1)
    neurons = int(beta * NEURONS + 1e-9) if method.prunes_neurons else NEURONS
    stage = next(iter(method.stages(LAYERS)), None)
    assert len(stats) == 3
    for row, s in enumerate(stats):
        ids = inputs["input_ids"][row]
        kept = choice.keep[row, ids == IMAGE_ID]
        assert s.prompt_tokens == int(inputs["attention_mask"][row].sum())
        assert s.image_tokens == int((ids == IMAGE_ID).sum())
        assert s.image_tokens_kept == int(kept.sum()) == len(s.kept)
        assert s.kept == tuple(kept.nonzero()[:, 0].tolist())
        left = s.prompt_tokens - s.image_tokens + s.image_tokens_kept
        assert s.tokens_per_layer == tuple(
            s.prompt_tokens if stage is None or number < stage.after else left for number in range(LAYERS)
        )
        assert s.cached_per_layer == tuple(
            s.prompt_tokens if stage is None or leaves_full(stage, number) else left for number in range(LAYERS)
        )
        assert s.kv_bytes == sum(map(int.__mul__, per_column, s.cached_per_layer))
        assert (s.neurons, s.neurons_kept) == (NEURONS, (neurons,) * LAYERS)
        assert s.selection_seconds >= 0 <= s.gather_seconds
        assert (s.knees_differ is None) == (
            s.image_tokens == 0 or not stage or stage.after == 0 or stage.keep != "knee"
        )


def test_text_always_stays(model):
    inputs = batch("ragged")
    for name, method in METHODS.items():
        with coremat.apply(model, method) as session:
            answer(model, inputs, new=1)
            keep = chosen(session).keep
        text = inputs["attention_mask"].bool() & (inputs["input_ids"] != IMAGE_ID)
        assert keep[text].all(), name
        assert not keep[~inputs["attention_mask"].bool()].any(), name


@pytest.mark.parametrize("prune_layer", [1, 4])
def test_arithmetic_counts_each_layers_own_tokens(model, prune_layer):
    with coremat.apply(model, f"corematching:tokens=5:prune_layer={prune_layer}") as session:
        answer(model, batch("left-padded"), new=1)
        stats = session.stats
    shape = adapter_for(model).shape
    for s in stats:
        seen = [s.prompt_tokens] * prune_layer + [s.prompt_tokens - 11] * (LAYERS - prune_layer)
        assert s.prefill_flops == prefill_flops(shape, seen)


@pytest.mark.parametrize(
    ("tokens", "kept"), [(1, 1), (5, 5), (16, 16), (99, 16), (0.25, 4), (0.3, 4), (1.0, 16), ("all", 16)]
)
def test_a_fixed_number_or_share_of_tokens(model, tokens, kept):
    for name in ("corematching", "attention-tokens", "random-tokens"):
        with coremat.apply(model, f"{name}:tokens={tokens}") as session:
            answer(model, batch("one"), new=1)
            assert session.stats[0].image_tokens_kept == kept


def test_beams_have_an_entry_each(model):
    with coremat.apply(model, "corematching:tokens=5") as session:
        answer(model, batch("left-padded"), num_beams=2)
        kept = [s.kept for s in session.stats]
    assert len(kept) == 4
    assert kept[0] == kept[1]
    assert kept[2] == kept[3]


def test_statistics_are_of_the_last_prompt(model):
    with coremat.apply(model, "corematching") as session:
        answer(model, batch("ragged"))
        answer(model, batch("no-image"))
        assert [(s.image_tokens, s.image_tokens_kept, s.knees_differ) for s in session.stats] == [(0, 0, None)] * 2


def test_the_workspace_is_allocated_once(model):
    with coremat.apply(model, "corematching") as session:
        assert session.workspace_bytes == 0
        answer(model, batch("left-padded"), new=2)
        session.materialise()
        size = session.workspace_bytes
        answer(model, batch("one"), new=4)
        answer(model, batch("same-length"), new=4)
        session.materialise()
        assert (
            session.workspace_bytes == size == LAYERS * 2 * 64 * (2 * 64 * 4 + 8)
        )  # two rows of m neurons: gate and up, and the number


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_runs(half_model, name):
    with coremat.apply(half_model, METHODS[name]) as session:
        got = answer(half_model, batch("ragged", torch.bfloat16))
        stats = session.stats
    assert got.logits.isfinite().all()
    assert got.cache.layers[0].keys.dtype == torch.bfloat16
    assert all(s.kv_bytes == sum(s.cached_per_layer) * (2 * 2 * 16 * 2) for s in stats)
    assert all(s.image_tokens_kept >= s.image_tokens // 16 for s in stats)
