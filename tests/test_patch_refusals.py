"""What cannot be given is refused in one sentence, before anything wrong comes out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny import BATCHES, BOS, IMAGE, IMAGE_ID, LAYERS, PAD, SIDE, answer, batch, make_inputs, text_config, tiny_llava
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

import coremat
from coremat import SparsityConfig
from coremat.errors import ConfigError, CorematError, DataError, UnsupportedError

CONFIG = SparsityConfig(tokens=5)


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
BAD_FIELDS = [
    *[("tokens", value) for value in (0, -1, 0.0, 1.5, -0.5, NAN, True, "some", "64", None, [4])],
    *[("token_score", value) for value in ("norm", "", None, 3)],
    *[("neurons", value) for value in ("most", 0.4, None)],
    *[(share, value) for share in ("alpha", "beta") for value in (0, 0.0, -0.1, 1.01, 2, NAN, "0.2", None, True)],
    *[("prune_layer", value) for value in (0, -1, 1.5, "2", None, True)],
    *[("voters", value) for value in ("image", None)],
    *[("knee", value) for value in ("left", None)],
    *[("neurons_in_prefill", value) for value in ("no", None, 2)],
    *[("seed", value) for value in ("x", 1.5, None)],
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_a_field_out_of_range(field, value):
    with refused(ConfigError, rf"{field} is {re.escape(repr(value))}.*accepted"):
        SparsityConfig(**{field: value})


@pytest.mark.parametrize("prune_layer", [LAYERS, LAYERS + 5])
def test_a_layer_that_the_model_has_not(model, prune_layer):
    with (
        refused(ConfigError, f"prune_layer is {prune_layer}"),
        coremat.apply(model, SparsityConfig(prune_layer=prune_layer)),
    ):
        pass


def test_the_last_possible_layer_is_accepted(model):
    with coremat.apply(model, SparsityConfig(prune_layer=LAYERS - 1)):
        answer(model, batch("one"), new=2)


def test_a_second_apply_inside_the_first(model):
    with coremat.apply(model, CONFIG):
        wanted = answer(model, batch("one"))
        with refused(ConfigError, "already inside"), coremat.apply(model, CONFIG):
            pass
        assert torch.equal(answer(model, batch("one")).logits, wanted.logits)


def test_two_models_at_once(model, bias_model):
    with coremat.apply(model, CONFIG), coremat.apply(bias_model, CONFIG) as other:
        answer(bias_model, batch("one"), new=2)
        assert other.stats[0].image_tokens_kept == 5


def test_a_model_type_without_adapter():
    shape = {name: value for name, value in text_config().items() if name != "model_type"}
    with refused(UnsupportedError, "'llama'.*llava"), coremat.apply(LlamaForCausalLM(LlamaConfig(**shape)), CONFIG):
        pass


def test_something_that_is_no_model():
    with refused(UnsupportedError, "'Linear'.*llava"), coremat.apply(torch.nn.Linear(2, 2), CONFIG):
        pass


def test_a_fused_gate():
    fused = tiny_llava(model_type="phi3")
    with refused(UnsupportedError, "layer 0.*gate_proj, up_proj"), coremat.apply(fused, CONFIG):
        pass


def test_a_sliding_window():
    sliding = tiny_llava(model_type="mistral", sliding_window=8)
    with refused(UnsupportedError, "sliding window of 8"), coremat.apply(sliding, CONFIG):
        pass


def test_a_static_cache_by_name(model):
    with coremat.apply(model, CONFIG), refused(UnsupportedError, "StaticCache.*DynamicCache"):
        answer(model, batch("one"), cache_implementation="static")


def test_a_static_cache_by_hand(model):
    cache = StaticCache(config=model.get_decoder().config, max_cache_len=40)
    with coremat.apply(model, CONFIG), refused(UnsupportedError, "StaticCache.*DynamicCache"):
        model(**batch("one"), past_key_values=cache)


@pytest.mark.parametrize("config", [CONFIG, SparsityConfig(tokens="all"), SparsityConfig(neurons="all")])
def test_generating_without_a_cache(model, config):
    with coremat.apply(model, config), refused(UnsupportedError, "use_cache"):
        answer(model, batch("one"), use_cache=False)


def test_a_forward_without_a_cache(model):
    with coremat.apply(model, CONFIG), refused(UnsupportedError, "use_cache"):
        model(**batch("one"), use_cache=False)


def test_embeddings_without_ids(model):
    embeds = model.get_input_embeddings()(batch("no-image")["input_ids"])
    with coremat.apply(model, CONFIG), refused(UnsupportedError, "inputs_embeds"):
        model.generate(inputs_embeds=embeds, max_new_tokens=2)


@pytest.mark.parametrize("neurons", ["core", "random"])
def test_embeddings_are_enough_for_neurons(model, half_model, neurons):
    ids = batch("no-image")["input_ids"][:1]
    for one in (model, half_model):
        with coremat.apply(one, SparsityConfig(tokens="all", neurons=neurons)) as session:
            one.generate(inputs_embeds=one.get_input_embeddings()(ids), max_new_tokens=3)
            assert session.stats[0].neurons_kept == (64,) * LAYERS


def test_image_tokens_that_are_no_whole_image(model):
    ids = torch.tensor([[BOS, *[IMAGE_ID] * 15, 30]])
    with coremat.apply(model, CONFIG), refused(DataError, "15 image tokens.*16"):
        model(input_ids=ids)


def test_images_of_one_row_in_another(model):
    """As many features as tokens in all, and still no row has a whole image."""
    rows = [[BOS, *[IMAGE_ID] * 12, 30, 31, 32, 33], [*[IMAGE_ID] * 4, *range(30, 43)]]
    with coremat.apply(model, CONFIG), refused(DataError, "12 image tokens"):
        model(input_ids=torch.tensor(rows), pixel_values=torch.zeros(1, 3, SIDE, SIDE))


def test_a_mask_of_another_shape(model):
    inputs = batch("one")
    with coremat.apply(model, CONFIG), refused(UnsupportedError, "attention_mask has shape"):
        model(**inputs | {"attention_mask": torch.ones(1, 1, 20, 20)})


def test_the_cache_of_an_earlier_prompt(model):
    with coremat.apply(model, CONFIG), torch.no_grad():
        earlier = model(**batch("one")).past_key_values
        model(**batch("same-length"))
        with refused(UnsupportedError, "cache"):
            model(input_ids=torch.tensor([[30]]), past_key_values=earlier)


def test_a_cache_that_was_filled_outside(model):
    with torch.no_grad():
        outside = model(**batch("one")).past_key_values
    with coremat.apply(model, CONFIG), refused(UnsupportedError, "cache"):
        model(input_ids=torch.tensor([[30]]), past_key_values=outside)


def test_a_new_image_in_a_second_turn(model):
    first_inputs, picture = batch("one"), make_inputs([BOS, IMAGE])["pixel_values"]
    with coremat.apply(model, CONFIG):
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


@pytest.mark.parametrize("config", [CONFIG, SparsityConfig(tokens="all")])
@pytest.mark.parametrize("size", [8, 19])
def test_a_prompt_read_in_pieces(model, config, size):
    """The second piece would be taken for an answer."""
    with coremat.apply(model, config), refused(CorematError, ""):
        answer(model, batch("one"), prefill_chunk_size=size)


def test_prompts_padded_on_the_right(model):
    """The first new token would come out of padding."""
    inputs = batch("left-padded")
    turned = {name: inputs[name].flip(1) for name in ("input_ids", "attention_mask")}
    with coremat.apply(model, CONFIG), refused(UnsupportedError, "padded on the right"):
        model(**inputs | turned)


def test_speculative_decoding(model):
    """Tokens that are proposed together with the prompt would vote, and be checked against every neuron."""
    with coremat.apply(model, CONFIG), refused(UnsupportedError, "prompt_lookup_num_tokens"):
        answer(model, batch("one"), prompt_lookup_num_tokens=3)


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3], []])
def test_seeds_that_are_not_one_per_sequence(model, seeds):
    inputs = make_inputs(*BATCHES["same-length"])
    with coremat.apply(model, SparsityConfig(token_score="random")) as session:
        session.sample_seeds = seeds
        if seeds == [1]:
            answer(model, inputs, new=1)  # as for two beams of one sequence
            assert len(session.stats) == 2
            return
        with refused(ConfigError, f"{len(seeds)} sample_seeds for 2"):
            answer(model, inputs, new=1)
