"""One step over fixed buffers gives what Hugging Face's `generate` gives: plain, compiled and replayed.

No CUDA device is needed: `Recording` stands in for a CUDA graph.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from configs import CONFIGS
from tiny import BATCHES, BOS, IMAGE, LAYERS, PAD, Prompt, answer, batch, make_inputs, tiny_llava
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import coremat
from coremat import Session
from coremat.decoding import graph_decoder
from coremat.decoding.graph_decoder import GraphDecoder
from coremat.errors import ConfigError, UnsupportedError
from coremat.tensors import token_positions

NEW = 6
LONG = 12  # a graph is launched several times
TIGHT = 2e-5
METHODS = [
    "dense",
    "paper",
    "neuron-only",
    "token-only",
    "fastv:tokens=5+core-neurons",  # its layers hold other tokens
    "core-tokens:tokens=5:positions=restart:earlier_cache=full",  # and count other positions
]
PROMPTS: list[Prompt] = [[BOS, 30, IMAGE, 31, 32], [BOS, IMAGE, 36, 37, 38, 39], [BOS, 33, 34], [BOS, IMAGE, 40]]


@contextmanager
def sparse(model, method: str) -> Iterator[Session | None]:
    """The session of a method's name; "dense" has none."""
    if method == "dense":
        yield None
        return
    with coremat.apply(model, CONFIGS.get(method, method)) as session:
        yield session


def stepwise(decoder, inputs, new=NEW):
    """Tokens [B, new] and the logits [B, new, V] that they were chosen from."""
    decoder.prefill(inputs)
    logits = []
    for count in range(1, new + 1):
        tokens = decoder.decode(count)
        logits.append(decoder.buffers.logits.clone())
    return tokens, torch.stack(logits, 1)


def compare(model, inputs, method, new=NEW):
    with sparse(model, method) as session:
        expected = answer(model, inputs, new=new)
        tokens, logits = stepwise(GraphDecoder(model, session, new, len(inputs["input_ids"])), inputs, new)
    assert torch.equal(tokens, expected.tokens)
    assert (logits - expected.logits).abs().max() < TIGHT


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BATCHES)
def test_tokens_and_logits_are_those_of_generate(model, name, method):
    compare(model, batch(name), method)


@pytest.mark.parametrize("method", METHODS)
def test_eager_attention(eager_model, method):
    compare(eager_model, batch("ragged"), method)


@pytest.mark.parametrize("method", ["dense", "paper"])
def test_padding_that_every_row_has(model, method):
    compare(model, make_inputs(*BATCHES["same-length"], extra_padding=5), method)


def test_a_missing_mask_hides_nothing(model):
    inputs = batch("one")
    masked = GraphDecoder(model, None, NEW).generate(inputs, NEW)
    del inputs["attention_mask"]
    assert torch.equal(GraphDecoder(model, None, NEW).generate(inputs, NEW), masked)


def test_positions_count_the_tokens_of_a_row():
    """Not seen in an answer: a row whose positions are all shifted alike answers the same."""
    valid = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    assert token_positions(valid).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


# --- one decoder, many prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_leaves_nothing_to_the_next(model, method):
    with sparse(model, method) as session:
        used = GraphDecoder(model, session, NEW)
        for prompt in (*PROMPTS, PROMPTS[0]):
            tokens, logits = stepwise(used, make_inputs(prompt))
            fresh_tokens, fresh_logits = stepwise(GraphDecoder(model, session, NEW), make_inputs(prompt))
            assert torch.equal(tokens, fresh_tokens)
            assert torch.equal(logits, fresh_logits)
            for layer in used.buffers.cache.layers:
                layer.keys.fill_(torch.nan)
                layer.values.fill_(torch.nan)


def addresses(decoder) -> list[int]:
    owners = (decoder.buffers, *decoder.buffers.groups)
    tensors = [t for owner in owners for t in vars(owner).values() if isinstance(t, torch.Tensor)]
    for layer in decoder.buffers.cache.layers:
        tensors += [layer.keys, layer.values, layer.cumulative_length]
    return [t.data_ptr() for t in tensors]


def test_buffers_stay_where_they_are(model):
    with sparse(model, "paper") as session:
        decoder = GraphDecoder(model, session, NEW)
        decoder.generate(make_inputs(PROMPTS[0]), NEW)
        before = addresses(decoder)
        for prompt in PROMPTS[1:]:
            decoder.generate(make_inputs(prompt), NEW)
            assert addresses(decoder) == before


def test_the_cache_is_as_large_as_computed_and_grows_in_buckets(model):
    heads, size = 2, 16
    decoder = GraphDecoder(model, None, NEW, batch_size=2)
    for images, text, slots in ((1, 1, 64), (3, 9, 64), (3, 10, 128), (1, 1, 128)):  # 48 + 1 + 9 + NEW = 64
        prompt: Prompt = [BOS, *[IMAGE] * images, *range(30, 30 + text)]
        inputs = make_inputs(prompt, prompt)
        assert torch.equal(decoder.generate(inputs, NEW), answer(model, inputs, new=NEW).tokens)
        assert decoder.buffers.cache_bytes == LAYERS * 2 * 2 * heads * slots * size * 4


def test_a_pruned_prompt_needs_the_slots_of_what_is_kept(model):
    inputs = make_inputs([BOS, *[IMAGE] * 4, 30])
    with coremat.apply(model, "corematching:tokens=5") as session:
        decoder = GraphDecoder(model, session, NEW)
        decoder.prefill(inputs)
    assert inputs["input_ids"].shape[1] > len(decoder.buffers.slots) == 64


def test_the_cache_of_the_prefill_is_not_kept_beside_the_other(model):
    caches: list = []
    hook = model.get_decoder().register_forward_hook(lambda module, args, output: caches.append(output.past_key_values))
    with sparse(model, "paper") as session:
        GraphDecoder(model, session, NEW).prefill(batch("one"))
        hook.remove()
        assert caches[0].layers == []
        assert session.stats[0].kv_bytes > 0


def test_generate_of_the_model_still_works_in_between(model):
    with sparse(model, "paper") as session:
        decoder, inputs = GraphDecoder(model, session, NEW, batch_size=3), batch("ragged")
        first = answer(model, inputs, new=NEW)
        decoder.generate(inputs, NEW)
        assert torch.equal(answer(model, inputs, new=NEW).logits, first.logits)
        assert torch.equal(decoder.generate(inputs, NEW), first.tokens)


def test_inside_and_outside_of_inference_mode(model):
    decoder = GraphDecoder(model, None, NEW)
    with torch.inference_mode():
        inside = decoder.generate(batch("one"), NEW)
    assert torch.equal(decoder.generate(batch("one"), NEW), inside)


# --- the end of an answer -------------------------------------------------------------------------------------------


def ends(model) -> list[int]:
    """A token that ends the second row of "left-padded" early, and one that ends the first row later."""
    plain = answer(model, batch("left-padded"), new=12).tokens
    late = next(int(t) for t in plain[0, 3:] if t not in plain[1, :9] and t not in plain[0, :3])
    return [int(plain[1, 1]), late]


@pytest.mark.parametrize("which", [slice(0, 1), slice(1, 2), slice(0, 2)])
def test_rows_end_as_in_generate(model, which):
    tokens, inputs = ends(model)[which], batch("left-padded")
    expected = answer(model, inputs, new=12, eos_token_id=tokens).tokens
    got = GraphDecoder(model, None, 12, batch_size=2).generate(inputs, 12, eos_token_id=tokens)
    assert (expected == PAD).any()
    assert torch.equal(got, expected)


def test_one_end_token_may_be_given_bare_and_no_step_is_made_after_it(model):
    plain = answer(model, batch("one"), new=NEW).tokens
    decoder = GraphDecoder(model, None, 12)
    got = decoder.generate(batch("one"), 12, eos_token_id=int(plain[0, 2]))
    last = plain[0].tolist().index(int(plain[0, 2])) + 1
    assert got.tolist() == plain[:, :last].tolist()
    assert int(decoder.buffers.count) == last


def test_each_column_is_reported_in_order(model):
    columns: list[torch.Tensor] = []
    got = GraphDecoder(model, None, NEW, batch_size=3).generate(batch("ragged"), NEW, on_token=columns.append)
    assert torch.equal(torch.stack(columns, 1), got)


def test_an_answer_of_one_token(model):
    decoder = GraphDecoder(model, None, 1)
    assert torch.equal(decoder.generate(batch("one"), 1), answer(model, batch("one"), new=1).tokens)


# --- compiled -------------------------------------------------------------------------------------------------------


def test_three_prompts_compile_once():
    """`fullgraph` would raise at a break; another set of neurons must not compile anew."""
    model, counter = tiny_llava(num_hidden_layers=2), CompileCounter()
    with sparse(model, "after-1") as session:
        decoder = GraphDecoder(model, session, NEW, compile_step=counter)
        for prompt in PROMPTS[:3]:
            expected = answer(model, make_inputs(prompt), new=NEW).tokens
            assert torch.equal(decoder.generate(make_inputs(prompt), NEW), expected)
    assert counter.frame_count == 1


# --- captured -------------------------------------------------------------------------------------------------------


class Recording(TorchDispatchMode):
    """What a CUDA graph is, without CUDA: operations with the memory that they read and wrote, done again to it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the step waits for the device"
        out = func(*args, **(kwargs or {}))
        memory = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs or {}, out))
        self.calls.append((func, *memory))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def recordings(monkeypatch) -> list[Recording]:
    """Decoders "capture", and add to this list whenever they do."""
    made: list[Recording] = []

    def captured(step, buffers):
        with buffers.restored(), Recording() as recording:
            step(buffers)
        made.append(recording)
        return recording

    monkeypatch.setattr(graph_decoder, "captured", captured)
    monkeypatch.setattr(graph_decoder, "_captures", lambda capture, devices: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return made


@pytest.mark.parametrize("method", METHODS)
def test_one_recording_replays_every_prompt(model, recordings, method):
    with sparse(model, method) as session:
        decoder = GraphDecoder(model, session, LONG)
        for prompt in PROMPTS:
            expected = answer(model, make_inputs(prompt), new=LONG).tokens
            assert torch.equal(decoder.generate(make_inputs(prompt), LONG), expected)
    assert len(recordings) == 1


def test_a_batch_replayed(model, recordings):
    for method in ("dense", "paper"):
        with sparse(model, method) as session:
            decoder = GraphDecoder(model, session, NEW, batch_size=3)
            for prompts in (BATCHES["ragged"], [*PROMPTS[:2], [BOS, 44]]):
                inputs = make_inputs(*prompts)
                assert torch.equal(decoder.generate(inputs, NEW), answer(model, inputs, new=NEW).tokens)
    assert len(recordings) == 2


def test_an_ffn_with_biases_replayed(bias_model, recordings):
    with sparse(bias_model, "neuron-only") as session:
        decoder = GraphDecoder(bias_model, session, LONG)
        for prompt in PROMPTS:
            inputs = make_inputs(prompt)
            assert torch.equal(decoder.generate(inputs, LONG), answer(bias_model, inputs, new=LONG).tokens)
    assert len(recordings) == 1


def test_an_end_is_seen_late_and_what_came_after_it_is_cut(model, recordings):
    plain = answer(model, batch("one"), new=30).tokens
    decoder, columns = GraphDecoder(model, None, 30), []
    got = decoder.generate(batch("one"), 30, eos_token_id=int(plain[0, 2]), on_token=columns.append)
    assert torch.equal(got, answer(model, batch("one"), new=30, eos_token_id=int(plain[0, 2])).tokens)
    assert len(columns) == got.shape[1]
    assert got.shape[1] < int(decoder.buffers.count) < got.shape[1] + 2 * graph_decoder.AHEAD
    assert torch.equal(decoder.generate(batch("one"), 30), plain)


def test_no_step_is_made_that_is_not_wanted(model, recordings):
    decoder = GraphDecoder(model, None, 30)
    for new in (1, 2, 9, 10, 30):
        decoder.generate(batch("one"), new)
        assert int(decoder.buffers.count) == new


def test_what_moves_makes_another_recording(model, recordings):
    decoder, small, large = GraphDecoder(model, None, NEW), batch("one"), make_inputs([BOS, *[IMAGE] * 4, 30])
    decoder.generate(small, NEW)
    decoder.generate(large, NEW)
    decoder.generate(small, NEW)
    assert len(recordings) == 2
    with coremat.apply(model, CONFIGS["neuron-only"]):
        pass
    decoder.generate(small, NEW)
    assert len(recordings) == 2  # a block leaves the weights where they were
    weight = model.get_decoder().layers[0].mlp.down_proj.weight
    place = weight.data
    weight.data = place.clone()
    decoder.generate(small, NEW)
    assert len(recordings) == 3
    weight.data = place


def test_a_workspace_that_grew_makes_another_recording(model, recordings):
    with sparse(model, "neuron-only") as session:
        decoder = GraphDecoder(model, session, NEW)
        expected = decoder.generate(batch("one"), NEW)
        answer(model, batch("ragged"))
        session.materialise()
        assert torch.equal(decoder.generate(batch("one"), NEW), expected)
    assert len(recordings) == 2


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; accepted: a whole number, at least 1"),
        ({"batch_size": 1.5}, "batch_size is 1.5; accepted: a whole number"),
        ({"capture": "always"}, "capture is 'always'; accepted: auto, true, false"),
    ],
)
def test_a_decoder_that_cannot_be(model, options, message):
    with pytest.raises(ConfigError, match=message):
        GraphDecoder(model, None, **{"max_new_tokens": NEW} | options)


def test_capture_needs_cuda(model):
    with pytest.raises(UnsupportedError, match="capture is on, and the model is on cpu"):
        GraphDecoder(model, None, NEW, capture=True)


def test_flash_attention_is_refused(monkeypatch):
    model = tiny_llava(num_hidden_layers=2)
    monkeypatch.setattr(model.get_decoder().config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(UnsupportedError, match="attention is 'flash_attention_2'"):
        GraphDecoder(model, None, NEW)


def test_prompts_that_do_not_suit(model):
    decoder = GraphDecoder(model, None, NEW)
    with pytest.raises(ConfigError, match="no prompt was read"):
        decoder.decode(1)
    with pytest.raises(ConfigError, match="the batch has 3 rows; accepted: 1"):
        decoder.prefill(batch("ragged"))
    with pytest.raises(ConfigError, match="max_new_tokens is 7; accepted: a whole number, 1 to 6"):
        decoder.generate(batch("one"), 7)
    padded = {"input_ids": torch.tensor([[BOS, 30, PAD]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    decoder.prefill(batch("one"))
    with pytest.raises(UnsupportedError, match="padded on the right"):
        decoder.prefill(padded)
    with pytest.raises(ConfigError, match="no prompt was read"):
        decoder.decode(1)


def test_a_decoder_keeps_to_its_own_block(model):
    dense = GraphDecoder(model, None, NEW)
    with sparse(model, "paper") as session:
        own = GraphDecoder(model, session, NEW)
        with pytest.raises(ConfigError, match="not in the block"):
            dense.prefill(batch("one"))
    with pytest.raises(ConfigError, match="not in the block"):
        own.prefill(batch("one"))
