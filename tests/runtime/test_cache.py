"""Whoever goes on with the short cache finds it right: a second turn, a hand-written loop."""

import pytest
import torch
from equivalence import both, second_turn
from tiny import answer, batch
from transformers import DynamicCache

import coremat

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
