"""Whoever goes on with the short cache finds it right: a second turn, a hand-written loop, prompt lookup."""

from contextlib import contextmanager

import pytest
import torch
from dense_masked import dense_masked
from tiny import BOS, IMAGE, answer, batch, chosen, make_inputs
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

import coremat
from coremat import SparsityConfig

CONFIG = SparsityConfig(tokens=5)


def second_turn(model, inputs, new_ids):
    """Answer, then go on with the cache that came back."""
    first = model.generate(**inputs, do_sample=False, max_new_tokens=4, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([new_ids] * len(first.sequences))], 1)
    added = ids.shape[1] - inputs["attention_mask"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, added), value=1)
    again = {"input_ids": ids, "attention_mask": mask}
    return answer(model, again, past_key_values=first.past_key_values)


@pytest.mark.parametrize(
    "config", [CONFIG, SparsityConfig(), SparsityConfig(tokens="all"), SparsityConfig(neurons="all")]
)
@pytest.mark.parametrize("name", ["one", "left-padded", "ragged", "no-image"])
def test_a_second_turn_goes_on_from_the_short_cache(model, name, config):
    with coremat.apply(model, config) as session:
        sparse = second_turn(model, batch(name), [41, 42, 43])
        choice = chosen(session)
    with dense_masked(model, config, choice):
        dense = second_turn(model, batch(name), [41, 42, 43])
    torch.testing.assert_close(sparse.logits, dense.logits, rtol=0, atol=2e-5)
    assert torch.equal(sparse.tokens, dense.tokens)


@pytest.mark.parametrize("name", ["one", "left-padded"])
def test_a_hand_written_loop_needs_no_positions(model, name):
    """Outside `generate` the model takes positions from the cache, which remembers its whole length."""
    inputs = batch(name)

    def loop():
        step, mask, tokens = dict(inputs), inputs["attention_mask"], []
        for _ in range(5):
            with torch.no_grad():
                out = model(**step, use_cache=True)
            tokens.append(out.logits[:, -1].argmax(-1))
            mask = torch.cat([mask, mask[:, -1:]], 1)
            step = {"input_ids": tokens[-1][:, None], "past_key_values": out.past_key_values, "attention_mask": mask}
        return torch.stack(tokens, 1)

    with coremat.apply(model, CONFIG) as session:
        sparse, choice = loop(), chosen(session)
    with dense_masked(model, CONFIG, choice):
        assert torch.equal(sparse, loop())


def test_several_tokens_at_once_do_not_see_each_others_future(model):
    inputs = batch("ragged")
    more = torch.tensor([[50, 51, 52]]).expand(3, -1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1)
    with coremat.apply(model, CONFIG), torch.no_grad():
        at_once = model(input_ids=more, attention_mask=mask, past_key_values=model(**inputs).past_key_values).logits
        cache, single = model(**inputs).past_key_values, []
        for i in range(3):
            step = {"input_ids": more[:, i : i + 1], "attention_mask": mask[:, : i - 2 or None]}
            single.append(model(**step, past_key_values=cache).logits)
    torch.testing.assert_close(at_once, torch.cat(single, 1), rtol=0, atol=2e-5)


def test_a_cache_may_be_brought(model):
    cache = DynamicCache()
    with coremat.apply(model, CONFIG):
        plain = answer(model, batch("left-padded"))
        brought = answer(model, batch("left-padded"), past_key_values=cache)
    assert torch.equal(plain.tokens, brought.tokens)


LOOKUP = {"prompt_lookup_num_tokens": 3, "new": 12}


@pytest.mark.parametrize("config", [CONFIG, SparsityConfig(), SparsityConfig(tokens="all")])
def test_prompt_lookup_gives_the_greedy_answer(model, config):
    """The answer repeats itself, so lookup has hits in it; the prompt ends with a token that it had not before."""
    inputs = batch("one")
    with coremat.apply(model, config):
        plain = answer(model, inputs, new=12)
        with steps(model) as widths:
            looked_up = answer(model, inputs, **LOOKUP)
    assert max(widths[1:]) > 1
    assert torch.equal(looked_up.tokens, plain.tokens)


@contextmanager
def steps(model):
    """How many tokens each forward of the block was given."""
    widths = []
    note = lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1])  # noqa: E731
    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    yield widths
    handle.remove()


@pytest.mark.parametrize("config", [CONFIG, SparsityConfig(tokens="all"), SparsityConfig(tokens=1.0, beta=1.0)])
def test_tokens_that_lookup_proposes_with_the_prompt_have_no_part_in_the_choice(model, config):
    """The prompt's end stands in it before, so that the first forward already carries proposed tokens."""
    inputs = make_inputs([BOS, 30, IMAGE, 41, 42, 43, 44, 45, 41, 42])
    with coremat.apply(model, config):
        plain = answer(model, inputs, new=12)
        looked_up = answer(model, inputs, **LOOKUP)
    assert torch.equal(looked_up.tokens, plain.tokens)


class FirstToken(LogitsProcessor):
    """The first new token is this one."""

    def __init__(self, length, token):
        self.length, self.token = length, token

    def __call__(self, input_ids, scores):
        return scores.index_fill(1, torch.tensor([self.token]), 1e9) if input_ids.shape[1] == self.length else scores


def test_prompt_lookup_may_propose_image_tokens(model):
    """The answer begins with the token that stands before the image, so lookup proposes what followed it there."""
    inputs = batch("one")
    first = LogitsProcessorList([FirstToken(inputs["input_ids"].shape[1], 30)])
    with coremat.apply(model, CONFIG):
        plain = answer(model, inputs, new=12, logits_processor=first)
        looked_up = answer(model, inputs, **LOOKUP, logits_processor=first)
    assert plain.tokens[0, 0] == 30
    assert torch.equal(looked_up.tokens, plain.tokens)
