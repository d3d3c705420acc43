"""Tokens dropped before the decoder: the model that never had them is the reference."""

import pytest
import torch
from tiny import BATCHES, PER_IMAGE, answer, batch, make_inputs, tiny_llava

import coremat
from coremat import SparsityConfig
from coremat.entry import AT_DOOR, AT_PROJECTOR
from coremat.errors import ConfigError, UnsupportedError
from coremat.graph_decode import GraphDecoder

SCORES = [*AT_PROJECTOR, *AT_DOOR]
NEW = 5


def config(score: str, **changes) -> SparsityConfig:
    return SparsityConfig(**({"tokens": 5, "token_score": score, "neurons": "all", "prune_layer": 0} | changes))


def seen_at_the_door(model, inputs, chosen: SparsityConfig):
    """What the first layer gets for the kept columns, and which they are."""
    seen = {}

    def look(module, args, kwargs):
        seen.setdefault("hidden", args[0].clone())

    with coremat.apply(model, chosen) as session:
        handle = model.get_decoder().layers[0].register_forward_pre_hook(look, with_kwargs=True)
        found = answer(model, inputs, new=NEW)
        handle.remove()
        return seen["hidden"], session._prompt.columns.live, found, session.stats


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("score", SCORES)
def test_it_is_the_model_that_gets_the_kept_embeddings_only(model, score, name):
    """With positions counted anew: `generate` on the short sequence of embeddings, padded on the left."""
    hidden, live, found, _ = seen_at_the_door(model, batch(name), config(score))
    options = {"do_sample": False, "max_new_tokens": NEW, "return_dict_in_generate": True, "output_logits": True}
    short = model.generate(inputs_embeds=hidden, attention_mask=live.long(), **options)
    torch.testing.assert_close(torch.stack(short.logits, 1), found.logits, rtol=1e-4, atol=2e-5)
    assert torch.equal(short.sequences, found.tokens)


@pytest.mark.parametrize("score", SCORES)
def test_a_budget_means_the_same_for_all(model, score):
    """But for a grid of averages, which is the largest that the budget has room for."""
    for tokens, kept in ((4 if score == "pooling" else 5,) * 2, (0.25, 4), (99, PER_IMAGE)):
        *_, [row, _] = seen_at_the_door(model, batch("same-length"), config(score, tokens=tokens))
        assert row.image_tokens_kept == kept, tokens


@pytest.mark.parametrize("score", SCORES)
def test_a_row_gets_what_it_gets_alone(exact_model, score):
    inputs = batch("ragged", torch.float64)
    *_, together, stats = seen_at_the_door(exact_model, inputs, config(score))
    for row, prompt in enumerate(BATCHES["ragged"]):
        alone_inputs = make_inputs(prompt, dtype=torch.float64)
        *_, alone, [own] = seen_at_the_door(exact_model, alone_inputs, config(score))
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert own.kept == stats[row].kept


@pytest.mark.parametrize("score", SCORES)
def test_original_positions_may_stay(model, score):
    """Then it is the dense model with the other columns hidden everywhere, if nothing is merged."""
    found = {}
    for positions in ("original", "reindexed", "auto"):
        *_, found[positions], _ = seen_at_the_door(model, batch("one"), config(score, positions=positions))
    assert torch.equal(found["auto"].logits, found["reindexed"].logits)
    assert not torch.equal(found["original"].logits, found["reindexed"].logits)


@pytest.mark.parametrize("score", SCORES)
def test_with_core_neurons_beside(model, score):
    chosen = config(score, neurons="core")
    with coremat.apply(model, chosen) as session:
        answer(model, batch("ragged"), new=NEW)
        assert all(set(row.neurons_kept) == {64} for row in session.stats)
        assert session.stats[0].image_tokens_kept in (4, 5)


@pytest.mark.parametrize("score", SCORES)
def test_beams_and_the_static_step_and_a_second_prompt(model, score):
    with coremat.apply(model, config(score)) as session:
        greedy = answer(model, batch("ragged"), new=NEW).tokens
        answer(model, batch("ragged"), new=NEW, num_beams=2)
        assert torch.equal(answer(model, batch("ragged"), new=NEW).tokens, greedy)
        decoder = GraphDecoder(model, session, NEW, batch_size=len(greedy))
        assert torch.equal(decoder.generate(batch("ragged"), NEW), greedy)


def encodes_before_beams(model) -> bool:
    """Older transformers repeat pixels image by image, so that a prompt of two images gets others in its beams."""
    return any(name.startswith("_prepare_multimodal") for name in dir(model))


@pytest.mark.parametrize("name", ["left-padded", "ragged"])
@pytest.mark.parametrize("score", AT_PROJECTOR)
def test_each_beam_has_the_images_of_its_prompt(model, score, name):
    """In "ragged" a row of two images between rows of one and none: every beam must find its own."""
    if name == "ragged" and not encodes_before_beams(model):
        name = "same-length"
    with coremat.apply(model, config(score)) as session:
        answer(model, batch(name), new=1)
        single = [row.kept for row in session.stats]
        answer(model, batch(name), new=1, num_beams=3)
        assert [row.kept for row in session.stats] == [kept for kept in single for _ in range(3)]


def test_all_is_as_it_was_afterwards(model):
    dense = answer(model, batch("ragged"))
    for score in SCORES:
        with coremat.apply(model, config(score)):
            answer(model, batch("ragged"))
    after = answer(model, batch("ragged"))
    assert torch.equal(after.logits, dense.logits)


def test_a_tower_without_a_class_token_is_refused(model, monkeypatch):
    monkeypatch.setattr("coremat.models.llava.LlavaAdapter.vision_layers", None)
    with pytest.raises(UnsupportedError, match="visionzip reads how a class token"):
        coremat.apply(model, config("visionzip")).__enter__()


def test_half_precision_runs():
    half = tiny_llava(dtype=torch.bfloat16)
    for score in SCORES:
        with coremat.apply(half, config(score)):
            assert answer(half, batch("ragged", torch.bfloat16), new=2).logits.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token_score": "visionzip", "prune_layer": 2}, "prune_layer is 2; accepted for visionzip: 0"),
        (
            {"token_score": "visionzip", "prune_layer": 0, "tokens": "knee"},
            "accepted for visionzip: a count or a share",
        ),
        ({"positions": "reindexed"}, "positions is 'reindexed' with core-neurons"),
        ({"positions": "new"}, "positions is 'new'"),
        ({"prune_layer": 0}, "prune_layer is 0"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        SparsityConfig(**changes)
