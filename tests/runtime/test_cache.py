"""Whoever goes on with the short cache finds it right: a second turn, a hand-written loop. None of ours is copied."""

from itertools import pairwise

import pytest
import torch
from equivalence import both, second_turn
from tiny import answer, batch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

import coremat
from coremat.runtime.cache import MOST_ROOM, ROOM, InPlaceCache, InPlaceLayer, in_place_cache
from coremat.testing.families.gemma3 import gemma3 as tiny_gemma3

METHOD = "corematching:tokens=5"


def test_cropping_takes_columns_off_the_end_of_a_short_cache(model):
    """In every version of transformers: some ask for a number to remove, some for the length to keep."""
    with coremat.apply(model, METHOD):
        cache = answer(model, batch("one"), new=4).cache
        columns, length = cache.layers[0].keys.shape[2], cache.get_seq_length()
        for layer in cache.layers:
            layer.crop(-2)
        assert {layer.keys.shape[2] for layer in cache.layers} == {columns - 2}
        assert cache.get_seq_length() == length - 2
        for layer in cache.layers:
            layer.crop(length - 3)
        assert {layer.values.shape[2] for layer in cache.layers} == {columns - 3}


@pytest.mark.parametrize(
    "method", [METHOD, "corematching", "core-neurons", "core-tokens", "fastv", "corematching:positions=restart"]
)
@pytest.mark.parametrize("name", ["one", "left-padded", "ragged", "no-image"])
def test_a_second_turn_goes_on_from_the_short_cache(model, name, method):
    sparse, dense = both(model, method, lambda: second_turn(model, batch(name), new=5, ids=(41, 42, 43)))
    torch.testing.assert_close(sparse.logits, dense.logits, rtol=0, atol=2e-5)
    assert torch.equal(sparse.tokens, dense.tokens)


@pytest.mark.parametrize("method", [METHOD, "fastv", "corematching:positions=restart", "visionzip:tokens=5"])
@pytest.mark.parametrize("name", ["one", "left-padded", "ragged"])
def test_a_hand_written_loop_needs_no_positions(model, name, method):
    """Outside `generate` the model takes positions from the cache, which remembers its whole length; where they were
    counted anew, new tokens go on from there, whatever padding the prompt had."""
    inputs = batch(name)

    def loop():
        step, mask, logits = dict(inputs), inputs["attention_mask"], []
        for _ in range(5):
            with torch.no_grad():
                out = model(**step, use_cache=True)
            logits.append(out.logits[:, -1])
            mask = torch.cat([mask, mask[:, -1:]], 1)
            step = {
                "input_ids": logits[-1].argmax(-1, keepdim=True),
                "past_key_values": out.past_key_values,
                "attention_mask": mask,
            }
        return torch.stack(logits, 1)

    sparse, dense = both(model, method, loop)
    torch.testing.assert_close(sparse, dense, rtol=0, atol=2e-5)


def test_several_tokens_at_once_do_not_see_each_others_future(model):
    inputs = batch("ragged")
    more = torch.tensor([[50, 51, 52]]).expand(3, -1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1)
    with coremat.apply(model, METHOD), torch.no_grad():
        at_once = model(input_ids=more, attention_mask=mask, past_key_values=model(**inputs).past_key_values).logits
        cache, single = model(**inputs).past_key_values, []
        for i in range(3):
            step = {"input_ids": more[:, i : i + 1], "attention_mask": mask[:, : i - 2 or None]}
            single.append(model(**step, past_key_values=cache).logits)
    torch.testing.assert_close(at_once, torch.cat(single, 1), rtol=0, atol=2e-5)


def test_a_cache_may_be_brought(model):
    cache = DynamicCache()
    with coremat.apply(model, METHOD):
        plain = answer(model, batch("left-padded"))
        brought = answer(model, batch("left-padded"), past_key_values=cache)
    assert torch.equal(plain.tokens, brought.tokens)


# --- nothing is copied while decoding -----------------------------------------------------------------------------


def states(columns: int, rows: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed + columns)
    keys, values = torch.randn(2, rows, columns, 3, 4, generator=drawn).transpose(2, 3)  # as a projection leaves them
    return keys.contiguous(), values.clone(memory_format=torch.preserve_format)


def in_place(room: int = 5) -> InPlaceLayer:
    layer = InPlaceLayer()
    layer.room = room
    return layer


def both_hold_the_same(own: DynamicLayer, reference: DynamicLayer) -> None:
    assert torch.equal(own.keys, reference.keys)
    assert torch.equal(own.values, reference.values)
    assert own.get_seq_length() == reference.get_seq_length()
    assert own.get_mask_sizes(2) == reference.get_mask_sizes(2)


CHANGES = {
    "crop": lambda layer: layer.crop(-3),
    "reorder": lambda layer: layer.reorder_cache(torch.tensor([1, 1])),
    "repeat": lambda layer: layer.batch_repeat_interleave(2),
    "select": lambda layer: layer.batch_select_indices(torch.tensor([1])),
    "reset": lambda layer: layer.reset(),
    "crop all but one": lambda layer: layer.crop(1 - layer.get_seq_length()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("room", [1, 5, 64])
def test_it_holds_what_hugging_faces_own_cache_holds(room, change):
    own, reference = in_place(room), DynamicLayer()
    for columns in (6, 1, 1, 2, 1, 1, 1, 4, 1):
        found, expected = (layer.update(*states(columns)) for layer in (own, reference))
        assert all(map(torch.equal, found, expected))
        both_hold_the_same(own, reference)
    for layer in (own, reference):
        CHANGES[change](layer)
    rows = 2 if change == "reset" else len(reference.keys)
    for seed in range(8):
        for layer in (own, reference):
            layer.update(*states(1, rows, seed))
        both_hold_the_same(own, reference)


def test_no_step_copies_while_there_is_room():
    layer = in_place(room=4)
    layer.update(*states(6))
    places = set()
    for step in range(4):
        layer.update(*states(1))
        places.add((layer.keys.data_ptr(), layer.values.data_ptr()))
        assert layer.keys.shape == layer.values.shape == (2, 3, 7 + step, 4)
    assert len(places) == 1


def test_room_grows_with_what_is_held_when_it_is_outgrown():
    layer, places = in_place(room=1), []
    layer.update(*states(6))
    for _ in range(200):
        layer.update(*states(1))
        places.append(layer.keys.data_ptr())
    moves = 1 + sum(before != after for before, after in pairwise(places))
    assert moves < 12  # from 6 columns to 206, by a half each time


def test_what_is_cut_off_is_written_over():
    layer = in_place()
    layer.update(*states(6))
    layer.update(*states(3))
    place = layer.keys.data_ptr()
    layer.crop(-2)
    layer.update(*states(1, seed=7))
    assert layer.keys.data_ptr() == place
    assert torch.equal(layer.keys[:, :, -1:], states(1, seed=7)[0])


def test_a_prompt_is_not_copied_and_keeps_nothing_else_in_memory():
    layer, (keys, values) = in_place(), states(6)
    layer.update(keys, values)
    assert (layer.keys.data_ptr(), layer.values.data_ptr()) == (keys.data_ptr(), values.data_ptr())
    fused = torch.cat(states(6), dim=-1)
    other = in_place()
    other.update(fused[..., :4], fused[..., 4:])
    for held, expected in ((other.keys, fused[..., :4]), (other.values, fused[..., 4:])):
        assert torch.equal(held, expected)
        assert held.untyped_storage().nbytes() == held.nbytes


def test_gradients_go_through_as_they_do_through_hugging_faces_own():
    gradients = []
    for layer in (in_place(), DynamicLayer()):
        prompt, first, second = (torch.ones(1, 1, n, 2, requires_grad=True) for n in (3, 1, 1))
        layer.update(prompt, prompt)
        seen = layer.update(first, first)[0].pow(3).sum()
        (seen + layer.update(2 * second, second)[0].pow(2).sum()).backward()
        gradients.append([tensor.grad for tensor in (prompt, first, second)])
    assert all(map(torch.equal, *gradients))


def test_a_cache_of_inference_mode_goes_on_outside():
    layer = in_place()
    with torch.inference_mode():
        layer.update(*states(6))
        layer.update(*states(1))
    with torch.no_grad():
        layer.update(*states(1, seed=1))
    assert torch.equal(layer.keys[:, :, -1:], states(1, seed=1)[0])


@pytest.mark.parametrize("method", ["dense", METHOD, "core-neurons"])
def test_generate_is_given_a_cache_with_room_for_what_it_may_say(model, method):
    inputs = batch("one")
    with coremat.apply(model, method):
        cache = answer(model, inputs, new=4).cache
    assert {layer.room for layer in cache.layers} == {4}
    assert all(isinstance(layer, InPlaceLayer) for layer in cache.layers)


def test_room_is_set_aside_up_to_a_bound(model):
    assert {layer.room for layer in InPlaceCache(model.config, 100_000).layers} == {MOST_ROOM}


@pytest.mark.parametrize(
    "given",
    [
        {"past_key_values": DynamicCache()},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"generation_config": GenerationConfig(cache_implementation="dynamic")},
    ],
    ids=lambda given: next(iter(given)),
)
def test_another_cache_that_was_asked_for_is_left_alone(model, given):
    assert in_place_cache(model, given) is None
    assert in_place_cache(model, {"use_cache": True, "past_key_values": None}).layers[0].room == ROOM


def test_layers_with_a_window_stay_hugging_faces_own():
    config = tiny_gemma3().config
    kinds = [type(layer) for layer in InPlaceCache(config).layers]
    windowed = [kind == "sliding_attention" for kind in config.get_text_config().layer_types]
    assert kinds == [DynamicSlidingWindowLayer if window else InPlaceLayer for window in windowed]
    assert len(set(kinds)) == 2


@pytest.mark.parametrize("method", ["dense", METHOD, "fastv", "core-neurons"])
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_bit_for_bit_those_on_hugging_faces_own_cache(model, method, beams):
    inputs, options = batch("left-padded"), {"num_beams": beams, "max_new_tokens": 9, "min_new_tokens": 9}
    options |= {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with coremat.apply(model, method):
        own = model.generate(**inputs, **options)
        theirs = model.generate(**inputs, **options, past_key_values=DynamicCache(config=model.config.text_config))
    assert torch.equal(own.sequences, theirs.sequences)
    assert all(map(torch.equal, own.logits, theirs.logits))
    for one, other in zip(own.past_key_values.layers, theirs.past_key_values.layers, strict=True):
        assert torch.equal(one.keys, other.keys)


def test_a_short_cache_takes_the_memory_of_what_is_left(model):
    with coremat.apply(model, METHOD), torch.no_grad():
        cache = InPlaceCache(model.config)
        model(**batch("one"), past_key_values=cache)
    for layer in cache.layers:
        assert layer.keys.untyped_storage().nbytes() == layer.keys.nbytes
        assert layer.values.untyped_storage().nbytes() == layer.values.nbytes
