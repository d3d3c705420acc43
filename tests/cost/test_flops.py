"""The formula of `coremat.cost.flops` against PyTorch's own count on the tiny model.

Both count matrix products only. PyTorch's counter is asked for the decoder and the head on the last token: the tower
and the projector run too, but are not in the formula. Left out by both: norms, rotary embeddings, softmax, the
activation function, and choosing tokens and neurons.
"""

import configs
import pytest
import torch
from tiny import BATCHES, LAYERS, answer, make_inputs, tiny_llava
from torch.utils.flop_counter import FlopCounterMode

import coremat
from coremat.cost.flops import decode_flops, layer_flops, prefill_flops
from coremat.models.families import adapter_for
from coremat.models.shape import DecoderShape

PROMPT = BATCHES["one"][0]


def counted(model, **inputs) -> int:
    """Decoder and last token's head, as PyTorch counts them. Eager attention: its products are plain bmm."""
    with torch.no_grad(), FlopCounterMode(display=False, depth=4) as counter:
        model(**(inputs or make_inputs(PROMPT)), logits_to_keep=1, use_cache=True)
    parts = counter.get_flop_counts()
    top = type(model).__name__
    of = {name: sum(counts.values()) for name, counts in parts.items()}
    rotary = of.get(f"{top}.model.language_model.rotary_emb", 0)  # a matrix product in some versions of transformers
    return of[f"{top}.model.language_model"] + of[f"{top}.lm_head"] - rotary


def test_dense_prefill_is_what_pytorch_counts(eager_model):
    length = make_inputs(PROMPT)["input_ids"].shape[1]
    assert prefill_flops(adapter_for(eager_model).shape, [length] * LAYERS) == counted(eager_model)


@pytest.mark.parametrize("name", ["paper", "core-neurons-count", "after-1", "after-4", "token-only", "neuron-only"])
def test_sparse_prefill_is_what_pytorch_counts(eager_model, name):
    with coremat.apply(eager_model, configs.CONFIGS[name]) as session:
        count = counted(eager_model)
        assert session.stats[0].prefill_flops == count


@pytest.mark.parametrize("before", [1, 4])
def test_dense_decode_step_is_what_pytorch_counts(eager_model, before):
    """The last of the new tokens is not in the cache yet."""
    cache = answer(eager_model, make_inputs(PROMPT), new=before).cache
    length = cache.get_seq_length() + 1
    count = counted(eager_model, input_ids=torch.tensor([[7]]), past_key_values=cache)
    assert decode_flops(adapter_for(eager_model).shape, [length] * LAYERS) == count


LLAVA_7B = DecoderShape(hidden=4096, attention=4096, key_value=4096, ffn=11008, vocabulary=32000)


def test_one_layer_by_hand():
    shape = DecoderShape(hidden=2, attention=6, key_value=3, ffn=5, vocabulary=7)
    assert layer_flops(shape, 4) == 2 * 4 * (2 * (6 + 6 + 3 + 3) + 3 * 2 * 5) + 4 * 4 * 4 * 6
    assert layer_flops(shape, 4, weights=5) == 2 * 4 * 5 + 4 * 4 * 4 * 6
    assert prefill_flops(shape, [4, 2]) == layer_flops(shape, 4) + layer_flops(shape, 2) + 2 * 2 * 7


def test_one_decode_step_by_hand():
    shape = DecoderShape(hidden=2, attention=6, key_value=3, ffn=5, vocabulary=7)
    layer = 2 * (2 * (6 + 6 + 3 + 3) + 3 * 2 * 5)
    assert decode_flops(shape, [9, 9, 5]) == 3 * layer + 4 * (9 + 9 + 5) * 6 + 2 * 2 * 7
    assert decode_flops(shape, [9, 9], [66, 42]) == decode_flops(shape, [9, 9]) - 2 * (66 - 42)


def test_shape_of_a_config(model):
    """Heads that share keys, with and without a head size of their own."""
    assert DecoderShape.of(model.config.text_config) == DecoderShape(64, 64, 32, 160, 200)
    wide = tiny_llava(head_dim=8).config.text_config
    assert DecoderShape.of(wide) == DecoderShape(64, 32, 16, 160, 200)


def test_llava_7b_prefill_shrinks_as_the_paper_says():
    dense = prefill_flops(LLAVA_7B, [610] * 32)
    sparse = prefill_flops(LLAVA_7B, [610] * 2 + [98] * 30)
    assert 7.9e12 < dense < 8.5e12
    assert sparse / dense == pytest.approx(0.22, abs=0.01)
