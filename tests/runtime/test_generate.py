"""Every way of generating goes through the patched model unchanged: held against the masked dense model, or against
the same session's greedy answer where the mode must not change it."""

import pytest
import torch
from equivalence import both
from tiny import BOS, IMAGE, VOCABULARY, answer, batch, make_inputs
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import coremat

METHOD = "corematching:tokens=5"
METHODS = [METHOD, "fastv", "corematching:positions=restart", "visionzip:tokens=5"]


def held(model, inputs, method=METHOD, **options):
    """The sparse and the masked dense answer, each drawn from the same seed."""

    def run():
        torch.manual_seed(5)
        return answer(model, inputs, **options)

    return both(model, method, run)


@pytest.mark.parametrize("name", ["one", "left-padded", "ragged"])
def test_sampling_draws_the_same_tokens(model, name):
    sparse, dense = held(model, batch(name), do_sample=True, temperature=1.5, top_k=50, new=10)
    assert torch.equal(sparse.tokens, dense.tokens)
    with coremat.apply(model, METHOD):
        assert not torch.equal(sparse.tokens, answer(model, batch(name), new=10).tokens)


@pytest.mark.parametrize("name", ["one", "left-padded", "ragged"])
@pytest.mark.parametrize("method", METHODS)
def test_beams(model, name, method):
    sparse, dense = held(model, batch(name), method, num_beams=3, new=6)
    assert torch.equal(sparse.tokens, dense.tokens)


def test_several_samples_of_one_prompt(model):
    sparse, dense = held(model, batch("left-padded"), do_sample=True, num_return_sequences=2, new=6)
    assert sparse.tokens.shape[0] == 4
    assert torch.equal(sparse.tokens, dense.tokens)


class Collect(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_a_streamer_gets_every_token(model):
    streamer, inputs = Collect(), batch("one")
    with coremat.apply(model, METHOD):
        plain = answer(model, inputs, new=6)
        streamed = answer(model, inputs, new=6, streamer=streamer)
    assert torch.equal(plain.tokens, streamed.tokens)
    assert streamer.tokens == inputs["input_ids"][0].tolist() + plain.tokens[0].tolist()
    assert streamer.ended


class StopAt(StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def test_stopping_criteria_stop(model):
    inputs = batch("left-padded")
    with coremat.apply(model, METHOD):
        plain = answer(model, inputs, new=8)
        stop = StoppingCriteriaList([StopAt(inputs["input_ids"].shape[1] + 3)])
        stopped = answer(model, inputs, new=8, stopping_criteria=stop)
    assert torch.equal(stopped.tokens, plain.tokens[:, :3])


def test_end_of_sequence_ends_each_row_by_itself(model):
    with coremat.apply(model, METHOD):
        plain = answer(model, batch("left-padded"), new=6).tokens
        ended = answer(model, batch("left-padded"), new=6, eos_token_id=int(plain[0, 1])).tokens
    assert ended[0, :2].tolist() == plain[0, :2].tolist()
    assert (ended[0, 2:] == 0).all()
    assert ended[1, :6].tolist() == plain[1, : ended.shape[1]].tolist()


def test_hidden_states_have_the_length_of_their_layer(model):
    inputs = batch("one")
    with coremat.apply(model, METHOD):
        out = model.generate(
            **inputs, do_sample=False, max_new_tokens=3, output_hidden_states=True, return_dict_in_generate=True
        )
        plain = answer(model, inputs, new=3)
    assert [h.shape[1] for h in out.hidden_states[0]] == [20] * 3 + [9] * 4  # 20 tokens, 5 of 16 image tokens stay
    assert [h.shape[1] for h in out.hidden_states[1]] == [1] * 7
    assert torch.equal(out.sequences[:, 20:], plain.tokens)


def test_a_tuple_may_be_asked_for(model):
    inputs = batch("one")
    with coremat.apply(model, METHOD), torch.no_grad():
        logits = model(**inputs, return_dict=False)[0]
        assert logits.shape == (1, 20, VOCABULARY)
        assert torch.allclose(logits, model(**inputs).logits, rtol=0, atol=0, equal_nan=True)


def test_arguments_may_be_positional(model):
    inputs = batch("one")
    with coremat.apply(model, METHOD) as session, torch.no_grad():
        named = model(**inputs).logits
        given = model(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"]).logits
        assert session.stats[0].image_tokens_kept == 5
    assert torch.allclose(named, given, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("prompts", [[[40]], [[40], [BOS, 41, 42]], [[IMAGE]], [[IMAGE], [40]]])
def test_prompts_of_one_token_or_one_image(model, prompts):
    for method in (METHOD, "corematching", "corematching:voters=text", "projection-tokens+core-neurons", "fastv"):
        sparse, dense = held(model, make_inputs(*prompts), method)
        assert torch.equal(sparse.tokens, dense.tokens)
        torch.testing.assert_close(sparse.logits, dense.logits, rtol=0, atol=2e-5)


def test_the_last_prompt_leaves_nothing(model):
    """Ragged, single, without image, ragged again: each as in a session of its own."""
    order = ["ragged", "one", "no-image", "same-length", "ragged"]

    def results(names):
        with coremat.apply(model, "corematching") as session:
            return [(answer(model, batch(name)), [s.kept for s in session.stats]) for name in names]

    for name, (got, kept) in zip(order, results(order), strict=True):
        [(fresh, fresh_kept)] = results([name])
        assert torch.equal(got.logits, fresh.logits), name
        assert kept == fresh_kept
