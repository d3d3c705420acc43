"""What every family has to hold, on a tiny random model of each."""

import functools
import re

import pytest
import torch
from equivalence import compare, second_turn
from tiny import answer
from torch import nn
from transformers import TextStreamer

import coremat
from coremat.errors import UnsupportedError
from coremat.methods.common.attention import attention_weights
from coremat.models.families import ADAPTERS, adapter_for
from coremat.testing.families import FAMILIES, PROMPTS
from coremat.testing.families.family import BOS, IMAGE, NEURONS, WIDE

SEEING = [name for name, family in FAMILIES.items() if family.images]
PRUNING = [name for name, family in FAMILIES.items() if family.tokens]
METHODS = {"paper": "corematching", "tokens": "core-tokens:tokens=0.4", "neurons": "core-neurons"}


@functools.cache
def tiny(name, attention="sdpa", dtype=torch.float32):
    return FAMILIES[name].model(attention=attention, dtype=dtype)


def config_of(name, kind="paper"):
    """A method that the family can run: without core tokens where there can be none."""
    return METHODS[kind if FAMILIES[name].tokens else "neurons"]


CASES = [
    (name, batch, kind)
    for name, family in FAMILIES.items()
    for batch in family.batches
    for kind in (METHODS if family.tokens else ["neurons"])
]
BATCHES = [(name, batch) for name, family in FAMILIES.items() for batch in family.batches]


def test_every_family_is_here():
    assert set(FAMILIES) == set(ADAPTERS)


# --- dropping is hiding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "batch", "kind"), CASES)
def test_dropped_equals_hidden(errors, name, batch, kind):
    stats = compare(tiny(name), FAMILIES[name].batch(batch), METHODS[kind], errors, f"{name}, {batch}, {kind}")
    if kind == "tokens":
        assert all(s.image_tokens_kept < s.image_tokens for s in stats if s.image_tokens)


@pytest.mark.parametrize("name", FAMILIES)
def test_dropped_equals_hidden_in_eager_attention(errors, name):
    inputs = FAMILIES[name].batch("left-padded")
    compare(tiny(name, "eager"), inputs, config_of(name), errors, f"{name}, eager")


@pytest.mark.parametrize("prune_layer", [1, 3, 4])
@pytest.mark.parametrize("name", PRUNING)
def test_dropped_equals_hidden_behind_any_layer(errors, name, prune_layer):
    method = f"corematching:tokens=0.4:prune_layer={prune_layer}"
    compare(tiny(name), FAMILIES[name].batch("left-padded"), method, errors, f"{name}, prune_layer {prune_layer}")


@pytest.mark.parametrize("name", PRUNING)
def test_a_row_that_keeps_its_whole_width(errors, name):
    """Beside it a shorter row loses tokens, so that as many columns as ever are there, in another order."""
    inputs = FAMILIES[name].inputs([[BOS, 30, IMAGE, 31, 32], [BOS, *range(40, 80)]], torch.float32)
    compare(tiny(name), inputs, "corematching:tokens=4", errors, f"{name}, whole width")


@pytest.mark.parametrize("name", FAMILIES)
def test_sparsity_does_something(name):
    model, inputs = tiny(name), FAMILIES[name].batch("one")
    dense = answer(model, inputs)
    for kind in METHODS if FAMILIES[name].tokens else ["neurons"]:
        with coremat.apply(model, METHODS[kind]):
            assert (answer(model, inputs).logits - dense.logits).abs().max() > 0.05, kind


@pytest.mark.parametrize("name", SEEING)
def test_images_have_an_effect(name):
    """Or else the tiny model would hide what goes wrong with them."""
    model, inputs = tiny(name), FAMILIES[name].batch("one")
    pixels = next(key for key in inputs if key.startswith("pixel_values"))
    other = answer(model, inputs | {pixels: -inputs[pixels]})
    assert (answer(model, inputs).logits - other.logits).abs().max() > 0.01


# --- everything kept is dense, a batch is its rows, nothing stays behind ------------------------------------------


@pytest.mark.parametrize(("name", "batch"), BATCHES)
def test_keeping_everything_through_the_sparse_path_is_dense(name, batch):
    model, inputs = tiny(name), FAMILIES[name].batch(batch)
    dense = answer(model, inputs)
    method = "corematching:tokens=1.0:beta=1.0" if FAMILIES[name].tokens else "core-neurons:beta=1.0"
    with coremat.apply(model, method) as session:
        sparse = answer(model, inputs)
        assert all(s.image_tokens_kept == s.image_tokens for s in session.stats)
    assert torch.equal(sparse.tokens, dense.tokens)
    assert (sparse.logits - dense.logits).norm() <= 1e-5 * dense.logits.norm()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_is_its_rows(name):
    """In float64, where the rounding that padding brings moves no choice."""
    family, model = FAMILIES[name], tiny(name, dtype=torch.float64)
    with coremat.apply(model, config_of(name)) as session:
        together = answer(model, family.batch(family.rows, torch.float64))
        stats = session.stats
        for row, prompt in enumerate(PROMPTS[family.rows]):
            alone = answer(model, family.inputs([prompt], torch.float64))
            assert session.stats[0].kept == stats[row].kept
            assert torch.equal(alone.tokens[0], together.tokens[row])
            assert (alone.logits[0] - together.logits[row]).abs().max() < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_leaving_the_block_restores_the_model(name):
    model, inputs = tiny(name), FAMILIES[name].batch("left-padded")
    before = answer(model, inputs).logits
    state = {key: value.clone() for key, value in model.state_dict().items()}
    traces = _traces(model)
    with coremat.apply(model, config_of(name)):
        answer(model, inputs, new=2)
    assert _traces(model) == traces
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(answer(model, inputs).logits, before)


def _traces(model):
    """Every hook and every attribute of every module."""
    return {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks), sorted(module.__dict__))
        for name, module in model.named_modules()
    }


# --- ways of generating -------------------------------------------------------------------------------------------

WAYS = {
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 3},
    "several answers": {"num_beams": 2, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FAMILIES)
def test_ways_of_generating(name, way):
    model, inputs = tiny(name), FAMILIES[name].batch("left-padded")
    with coremat.apply(model, config_of(name)):
        torch.manual_seed(0)
        assert answer(model, inputs, new=3, **WAYS[way]).tokens.shape[1] == 3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_second_turn_on_the_returned_cache(errors, name):
    inputs = FAMILIES[name].batch("one")
    compare(tiny(name), inputs, config_of(name), errors, f"{name}, second turn", run=second_turn)


class Silent(TextStreamer):
    def __init__(self):
        self.given = 0

    def put(self, value):
        self.given += 1

    def end(self):
        pass


@pytest.mark.parametrize("name", FAMILIES)
def test_a_streamer(name):
    streamer = Silent()
    with coremat.apply(tiny(name), config_of(name)):
        answer(tiny(name), FAMILIES[name].batch("one"), new=3, streamer=streamer)
    assert streamer.given == 1 + 3


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16(name):
    model = tiny(name, dtype=torch.bfloat16)
    with coremat.apply(model, config_of(name)):
        logits = answer(model, FAMILIES[name].batch("left-padded", torch.bfloat16), new=3).logits
    assert logits.isfinite().all()


# --- what an adapter says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRUNING)
def test_each_image_has_its_own_number(name):
    ids = FAMILIES[name].batch("left-padded")["input_ids"]
    adapter = adapter_for(tiny(name))
    index, visual = adapter.visual_index(ids), adapter.visual_tokens(ids)
    assert torch.equal(index >= 0, visual)
    for row, prompt in zip(index, PROMPTS["left-padded"], strict=True):
        images = sum(part in (IMAGE, WIDE) for part in prompt)
        assert row[row >= 0].unique().tolist() == list(range(images))
        assert torch.equal(row[row >= 0], row[row >= 0].sort().values)


@pytest.mark.parametrize("name", PRUNING)
def test_queries_give_the_models_own_attention(name):
    model, inputs = tiny(name, "eager"), FAMILIES[name].batch("left-padded")
    adapter, seen = adapter_for(model), {}
    layer = adapter.layers[2]

    def see(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        every = torch.arange(hidden.shape[1]).expand(len(hidden), -1)
        seen["queries"] = adapter.queries(layer, hidden, kwargs["position_embeddings"], every)

    hook = layer.self_attn.register_forward_pre_hook(see, with_kwargs=True)
    with torch.no_grad():
        out = model(**inputs, output_attentions=True, use_cache=True)
    hook.remove()
    valid = inputs["attention_mask"].bool()
    before = torch.ones(valid.shape[1], valid.shape[1], dtype=torch.bool).tril() & valid[:, None]
    keys = out.past_key_values.layers[2].keys
    found = attention_weights(seen["queries"], keys, before, adapter.scaling(layer))
    assert (found - out.attentions[2])[:, :, -1].abs().max() < 1e-5
    if name != "gemma3":  # whose image tokens attend to those behind them
        rows = valid[:, None, :, None]
        assert ((found - out.attentions[2]) * rows).nan_to_num().abs().max() < 1e-5


@pytest.mark.parametrize("name", SEEING)
def test_vision_is_a_tower_and_a_projector(name):
    model, runs = tiny(name), []
    for module in adapter_for(model).vision:
        hook = module.register_forward_pre_hook(lambda module, args: runs.append("ran"))
        answer(model, FAMILIES[name].batch("one"), new=1)
        hook.remove()
        assert runs == ["ran"]
        runs.clear()


# --- what is refused -------------------------------------------------------------------------------------------------


def refusal(model, method):
    with pytest.raises(UnsupportedError) as info, coremat.apply(model, method):
        pass
    text = str(info.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


class Quantised(nn.Linear):
    """As bitsandbytes has it: a Linear whose weights are whole numbers."""

    def __init__(self):
        super().__init__(4, 4)
        self.weight = nn.Parameter(torch.zeros(16, 1, dtype=torch.uint8), requires_grad=False)


def _missing(mlp):
    del mlp.act_fn


def _quantised(mlp):
    mlp.down_proj = Quantised()


def _wrapped(mlp):
    mlp.gate_proj = nn.Sequential(mlp.gate_proj)


def _tied(mlp):
    mlp.up_proj.weight = mlp.gate_proj.weight


@pytest.mark.parametrize(
    ("spoil", "about"),
    [
        (_missing, "layer 1 .* no act_fn"),
        (_quantised, "down_proj in layer 1 .* Quantised with weights of torch.uint8"),
        (_wrapped, "gate_proj in layer 1 .* Sequential"),
        (_tied, "up_proj in layer 1 .* shares its weights with gate_proj in layer 1"),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_an_unexpected_ffn(name, spoil, about):
    model = FAMILIES[name].model()
    spoil(model.get_decoder().layers[1].mlp)
    assert re.search(about, refusal(model, "core-neurons"))


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.tokens])
def test_tokens_where_they_cannot_be_pruned(name):
    model = tiny(name)
    for method in ("corematching", "core-tokens:tokens=4", "fastv", "divprune", "visionzip"):
        assert "accepted: methods of neurons alone, dense" in refusal(model, method)


@pytest.mark.parametrize(("name", "batch"), [(name, "one") for name in FAMILIES])
def test_stats(name, batch):
    with coremat.apply(tiny(name), config_of(name, "neurons")) as session:
        answer(tiny(name), FAMILIES[name].batch(batch), new=1)
    (row,) = session.stats
    assert set(row.neurons_kept) == {0.4 * NEURONS}
    assert (row.image_tokens > 0) == FAMILIES[name].tokens
