"""Tokens dropped before the decoder: the model that never had them is the reference."""

import time

import pytest
import torch
from tiny import BATCHES, PER_IMAGE, answer, batch, make_inputs, tiny_llava

import coremat
from coremat.decoding.graph_decoder import GraphDecoder
from coremat.errors import ConfigError, UnknownNameError, UnsupportedError
from coremat.methods import registry
from coremat.methods.visionzip import VisionZip

AT_PROJECTOR = ["visionzip", "prumerge", "prumerge+"]
METHODS = [*AT_PROJECTOR, "divprune", "uniform-tokens", "average-pooling"]
NEW = 5


def seen_by_the_decoder(model, inputs, method: str):
    """What the first layer gets for the kept columns, and which they are."""
    seen = {}

    def look(module, args, kwargs):
        seen.setdefault("hidden", args[0].clone())

    with coremat.apply(model, method) as session:
        handle = model.get_decoder().layers[0].register_forward_pre_hook(look, with_kwargs=True)
        found = answer(model, inputs, new=NEW)
        handle.remove()
        return seen["hidden"], session.prompt.present.kept.live, found, session.stats


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_model_that_gets_the_kept_embeddings_only(model, method, name):
    """With positions counted anew: `generate` on the short sequence of embeddings, padded on the left."""
    hidden, live, found, _ = seen_by_the_decoder(model, batch(name), f"{method}:tokens=5")
    options = {"do_sample": False, "max_new_tokens": NEW, "return_dict_in_generate": True, "output_logits": True}
    short = model.generate(inputs_embeds=hidden, attention_mask=live.long(), **options)
    torch.testing.assert_close(torch.stack(short.logits, 1), found.logits, rtol=1e-4, atol=2e-5)
    assert torch.equal(short.sequences, found.tokens)


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_means_the_same_for_all(model, method):
    """But for a grid of averages, which is the largest that the budget has room for."""
    for tokens, kept in ((4 if method == "average-pooling" else 5,) * 2, (0.25, 4), (99, PER_IMAGE)):
        *_, [row, _] = seen_by_the_decoder(model, batch("same-length"), f"{method}:tokens={tokens}")
        assert row.image_tokens_kept == kept, tokens


@pytest.mark.parametrize("method", METHODS)
def test_a_row_gets_what_it_gets_alone(exact_model, method):
    inputs = batch("ragged", torch.float64)
    *_, together, stats = seen_by_the_decoder(exact_model, inputs, f"{method}:tokens=5")
    for row, prompt in enumerate(BATCHES["ragged"]):
        alone_inputs = make_inputs(prompt, dtype=torch.float64)
        *_, alone, [own] = seen_by_the_decoder(exact_model, alone_inputs, f"{method}:tokens=5")
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert own.kept == stats[row].kept


@pytest.mark.parametrize("method", METHODS)
def test_original_positions_may_stay(model, method):
    """Then it is the dense model with the other columns hidden everywhere, if nothing is merged."""
    found = {}
    for positions in ("original", "restart", "auto"):
        *_, found[positions], _ = seen_by_the_decoder(model, batch("one"), f"{method}:tokens=5:positions={positions}")
    assert torch.equal(found["auto"].logits, found["restart"].logits)
    assert not torch.equal(found["original"].logits, found["restart"].logits)


@pytest.mark.parametrize("method", METHODS)
def test_with_core_neurons_beside(model, method):
    with coremat.apply(model, f"{method}:tokens=5+core-neurons") as session:
        answer(model, batch("ragged"), new=NEW)
        assert all(set(row.neurons_kept) == {64} for row in session.stats)
        assert session.stats[0].image_tokens_kept in (4, 5)


@pytest.mark.parametrize("method", METHODS)
def test_beams_and_the_static_step_and_a_second_prompt(model, method):
    with coremat.apply(model, f"{method}:tokens=5") as session:
        greedy = answer(model, batch("ragged"), new=NEW).tokens
        answer(model, batch("ragged"), new=NEW, num_beams=2)
        assert torch.equal(answer(model, batch("ragged"), new=NEW).tokens, greedy)
        decoder = GraphDecoder(model, session, NEW, batch_size=len(greedy))
        assert torch.equal(decoder.generate(batch("ragged"), NEW), greedy)


def encodes_before_beams(model) -> bool:
    """Older transformers repeat pixels image by image, so that a prompt of two images gets others in its beams."""
    return any(name.startswith("_prepare_multimodal") for name in dir(model))


@pytest.mark.parametrize("name", ["left-padded", "ragged"])
@pytest.mark.parametrize("method", AT_PROJECTOR)
def test_each_beam_has_the_images_of_its_prompt(model, method, name):
    """In "ragged" a row of two images between rows of one and none: every beam must find its own."""
    if name == "ragged" and not encodes_before_beams(model):
        name = "same-length"
    with coremat.apply(model, f"{method}:tokens=5") as session:
        answer(model, batch(name), new=1)
        single = [row.kept for row in session.stats]
        answer(model, batch(name), new=1, num_beams=3)
        assert [row.kept for row in session.stats] == [kept for kept in single for _ in range(3)]


def test_all_is_as_it_was_afterwards(model):
    dense = answer(model, batch("ragged"))
    for method in METHODS:
        with coremat.apply(model, f"{method}:tokens=5"):
            answer(model, batch("ragged"))
    after = answer(model, batch("ragged"))
    assert torch.equal(after.logits, dense.logits)


def test_a_tower_without_a_class_token_is_refused(model, monkeypatch):
    monkeypatch.setattr("coremat.models.llava.LlavaAdapter.vision_layers", None)
    with pytest.raises(UnsupportedError, match="visionzip reads how a class token"):
        coremat.apply(model, "visionzip").__enter__()


def test_what_is_chosen_at_the_projector_is_timed(model, monkeypatch):
    choose, waits = VisionZip.before_projector, [0.0, 1.0]
    monkeypatch.setattr(VisionZip, "before_projector", lambda *args: time.sleep(waits.pop()) or choose(*args))
    with coremat.apply(model, "visionzip") as session:
        answer(model, batch("one"), new=1)
        assert session.stats[0].selection_seconds > 1
        answer(model, batch("one"), new=1)
        assert session.stats[0].selection_seconds < 1  # that of this prompt alone


def test_half_precision_runs():
    half = tiny_llava(dtype=torch.bfloat16)
    for method in METHODS:
        with coremat.apply(half, f"{method}:tokens=5"):
            assert answer(half, batch("ragged", torch.bfloat16), new=2).logits.isfinite().all()


@pytest.mark.parametrize(
    ("method", "error", "words"),
    [
        ("visionzip:prune_layer=2", UnknownNameError, "unknown option of visionzip .prune_layer.: "),
        ("visionzip:tokens=knee", ConfigError, "tokens is 'knee'; accepted: a count of at least 1, a share"),
        ("divprune:positions=reindexed", ConfigError, "positions is 'reindexed'; accepted: auto, original, restart"),
        ("divprune+fastv", ConfigError, "joins before decoder . decoder layer; accepted"),
        ("fastv:prune_layer=0", ConfigError, "prune_layer is 0"),
    ],
)
def test_what_does_not_go_together_is_refused(method, error, words):
    with pytest.raises(error, match=words):
        registry.parse(method)
