"""What cannot be given is refused in one sentence, before anything wrong comes out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from tiny import BATCHES, BOS, IMAGE, IMAGE_ID, LAYERS, PAD, SIDE, answer, batch, make_inputs, tiny_llava
from transformers import OPTConfig, OPTForCausalLM, StaticCache

import coremat
from coremat.errors import ConfigError, CorematError, DataError, UnsupportedError
from coremat.methods.base import Method
from coremat.methods.corematching.corematching import CoreMatching
from coremat.methods.corematching.random_tokens import RandomTokens

METHOD = "corematching:tokens=5"


@contextmanager
def refused(error: type[CorematError], about: str) -> Iterator[None]:
    """The block raises `error`, with one sentence that says `about`."""
    with pytest.raises(error) as info:
        yield
    text = str(info.value)
    assert re.search(about, text), text
    assert "\n" not in text
    assert text.endswith(".")


NAN = float("nan")
BAD_OPTIONS = [
    *[("tokens", value) for value in (0, -1, 0.0, 1.5, -0.5, NAN, True, "some", "64", None, [4])],
    *[(share, value) for share in ("alpha", "beta") for value in (0, 0.0, -0.1, 1.01, 2, NAN, "0.2", None, True)],
    *[("prune_layer", value) for value in (0, -1, 1.5, "2", None, True)],
    *[("voters", value) for value in ("image", None)],
    *[("knee", value) for value in ("left", None)],
    *[("prefill_from", value) for value in ("no", 0, -1, 1.5, True)],
    *[("positions", value) for value in ("new", "reindexed", None, 0)],
    *[("earlier_cache", value) for value in ("half", None, True)],
    *[("neuron_sets", value) for value in ("all", None)],
]


@pytest.mark.parametrize(("option", "value"), BAD_OPTIONS)
def test_an_option_out_of_range(option, value):
    with refused(ConfigError, rf"{option} is {re.escape(repr(value))}.*accepted"):
        CoreMatching(**{option: value})


@pytest.mark.parametrize("value", ["x", 1.5, None, -1, True])
def test_a_seed_out_of_range(value):
    with refused(ConfigError, rf"seed is {re.escape(repr(value))}; accepted: a whole number, at least 0"):
        RandomTokens(seed=value)


@pytest.mark.parametrize("prune_layer", [LAYERS, LAYERS + 5])
def test_a_layer_that_the_model_has_not(model, prune_layer):
    method = f"corematching:prune_layer={prune_layer}"
    with refused(ConfigError, f"prunes after {prune_layer} .* 1 to {LAYERS - 1}"), coremat.apply(model, method):
        pass


def test_the_last_possible_layer_is_accepted(model):
    with coremat.apply(model, f"corematching:prune_layer={LAYERS - 1}"):
        answer(model, batch("one"), new=2)


def test_a_second_apply_inside_the_first(model):
    with coremat.apply(model, METHOD):
        wanted = answer(model, batch("one"))
        with refused(ConfigError, "already inside"), coremat.apply(model, METHOD):
            pass
        assert torch.equal(answer(model, batch("one")).logits, wanted.logits)


def test_two_models_at_once(model, bias_model):
    with coremat.apply(model, METHOD), coremat.apply(bias_model, METHOD) as other:
        answer(bias_model, batch("one"), new=2)
        assert other.stats[0].image_tokens_kept == 5


def test_a_model_type_without_adapter():
    opt = OPTForCausalLM(OPTConfig(vocab_size=8, hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1))
    with refused(UnsupportedError, "'opt'.*llava"), coremat.apply(opt, METHOD):
        pass


def test_something_that_is_no_model():
    words = "Linear is a part of a model; accepted: the model with its output head"
    with refused(UnsupportedError, words), coremat.apply(torch.nn.Linear(2, 2), METHOD):
        pass


def test_a_fused_gate():
    fused = tiny_llava(model_type="phi3")
    with refused(UnsupportedError, "layer 0.*gate_proj, up_proj"), coremat.apply(fused, METHOD):
        pass


def test_a_sliding_window():
    sliding = tiny_llava(model_type="mistral", sliding_window=8)
    with refused(UnsupportedError, "sliding window of 8"), coremat.apply(sliding, METHOD):
        pass


def test_a_static_cache_by_name(model):
    with coremat.apply(model, METHOD), refused(UnsupportedError, "StaticCache.*DynamicCache"):
        answer(model, batch("one"), cache_implementation="static")


def test_a_static_cache_by_hand(model):
    cache = StaticCache(config=model.get_decoder().config, max_cache_len=40)
    with coremat.apply(model, METHOD), refused(UnsupportedError, "StaticCache.*DynamicCache"):
        model(**batch("one"), past_key_values=cache)


@pytest.mark.parametrize("method", [METHOD, "core-neurons", "core-tokens", "dense"])
def test_generating_without_a_cache(model, method):
    with coremat.apply(model, method), refused(UnsupportedError, "use_cache"):
        answer(model, batch("one"), use_cache=False)


def test_a_forward_without_a_cache(model):
    with coremat.apply(model, METHOD), refused(UnsupportedError, "use_cache"):
        model(**batch("one"), use_cache=False)


def test_embeddings_without_ids(model):
    embeds = model.get_input_embeddings()(batch("no-image")["input_ids"])
    with coremat.apply(model, METHOD), refused(UnsupportedError, "inputs_embeds"):
        model.generate(inputs_embeds=embeds, max_new_tokens=2)


@pytest.mark.parametrize("method", ["core-neurons", "random-neurons"])
def test_embeddings_are_enough_for_neurons(model, half_model, method):
    ids = batch("no-image")["input_ids"][:1]
    for one in (model, half_model):
        with coremat.apply(one, method) as session:
            one.generate(inputs_embeds=one.get_input_embeddings()(ids), max_new_tokens=3)
            assert session.stats[0].neurons_kept == (64,) * LAYERS


def test_image_tokens_that_are_no_whole_image(model):
    ids = torch.tensor([[BOS, *[IMAGE_ID] * 15, 30]])
    with coremat.apply(model, METHOD), refused(DataError, "15 image tokens.*16"):
        model(input_ids=ids)


def test_images_of_one_row_in_another(model):
    """As many features as tokens in all, and still no row has a whole image."""
    rows = [[BOS, *[IMAGE_ID] * 12, 30, 31, 32, 33], [*[IMAGE_ID] * 4, *range(30, 43)]]
    with coremat.apply(model, METHOD), refused(DataError, "12 image tokens"):
        model(input_ids=torch.tensor(rows), pixel_values=torch.zeros(1, 3, SIDE, SIDE))


def test_a_mask_of_another_shape(model):
    inputs = batch("one")
    with coremat.apply(model, METHOD), refused(UnsupportedError, "attention_mask has shape"):
        model(**inputs | {"attention_mask": torch.ones(1, 1, 20, 20)})


def test_the_cache_of_an_earlier_prompt(model):
    with coremat.apply(model, METHOD), torch.no_grad():
        earlier = model(**batch("one")).past_key_values
        model(**batch("same-length"))
        with refused(UnsupportedError, "cache"):
            model(input_ids=torch.tensor([[30]]), past_key_values=earlier)


def test_a_cache_that_was_filled_outside(model):
    with torch.no_grad():
        outside = model(**batch("one")).past_key_values
    with coremat.apply(model, METHOD), refused(UnsupportedError, "cache"):
        model(input_ids=torch.tensor([[30]]), past_key_values=outside)


def test_a_new_image_in_a_second_turn(model):
    first_inputs, picture = batch("one"), make_inputs([BOS, IMAGE])["pixel_values"]
    with coremat.apply(model, METHOD):
        first = model.generate(**first_inputs, do_sample=False, max_new_tokens=3, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, torch.tensor([[30, *[IMAGE_ID] * 16, 31]])], 1)
        with refused(UnsupportedError, "image"):
            model.generate(
                input_ids=ids,
                attention_mask=(ids != PAD).long(),
                pixel_values=picture,
                past_key_values=first.past_key_values,
                max_new_tokens=2,
            )


@pytest.mark.parametrize("method", [METHOD, "core-neurons"])
@pytest.mark.parametrize("size", [8, 19])
def test_a_prompt_read_in_pieces(model, method, size):
    """The second piece would be taken for an answer."""
    with coremat.apply(model, method), refused(CorematError, ""):
        answer(model, batch("one"), prefill_chunk_size=size)


def test_prompts_padded_on_the_right(model):
    """The first new token would come out of padding."""
    inputs = batch("left-padded")
    turned = {name: inputs[name].flip(1) for name in ("input_ids", "attention_mask")}
    with coremat.apply(model, METHOD), refused(UnsupportedError, "padded on the right"):
        model(**inputs | turned)


def test_speculative_decoding(model):
    """Tokens that are proposed together with the prompt would vote, and be checked against every neuron."""
    with coremat.apply(model, METHOD), refused(UnsupportedError, "prompt_lookup_num_tokens"):
        answer(model, batch("one"), prompt_lookup_num_tokens=3)


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3], []])
def test_seeds_that_are_not_one_per_sequence(model, seeds):
    inputs = make_inputs(*BATCHES["same-length"])
    with coremat.apply(model, "random-tokens+core-neurons") as session:
        session.sample_seeds = seeds
        if seeds == [1]:
            answer(model, inputs, new=1)  # as for two beams of one sequence
            assert len(session.stats) == 2
            return
        with refused(ConfigError, f"{len(seeds)} sample_seeds for 2"):
            answer(model, inputs, new=1)


def test_a_need_that_the_model_does_not_give(model):
    @dataclass(frozen=True, kw_only=True)
    class Asks(Method):
        needs = frozenset({"question"})

    with pytest.raises(UnsupportedError, match=r"Asks needs a question; .* gives class token"):
        coremat.apply(model, Asks()).__enter__()


def test_neurons_in_the_prefill_from_a_layer_that_is_not_there(model):
    with pytest.raises(ConfigError, match=f"from layer {LAYERS} on; accepted .* up to {LAYERS - 1}"):
        coremat.apply(model, f"core-neurons:prefill_from={LAYERS}").__enter__()
