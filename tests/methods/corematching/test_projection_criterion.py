"""Eq. 7 and 8 against the loops of `reference.py`, and against the attention of a real layer."""

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick, seeded, seeds
from tiny import batch

from coremat.methods.attention_tokens import AttentionTokens
from coremat.methods.base import Stage
from coremat.methods.common.attention import attention_weights
from coremat.methods.corematching.projection_criterion import projection_values
from coremat.methods.views import LayerView
from coremat.models.families import adapter_for

shapes = st.tuples(st.integers(1, 2), st.sampled_from([1, 2]), st.sampled_from([1, 2, 3]), st.integers(1, 6))


def attention_parts(shape, seed):
    """query, keys, values, W_O and valid of a random layer: B rows, `groups` query heads for each of `kv` heads."""
    rows, kv, groups, tokens = shape
    heads, size = kv * groups, 3
    random = seeded(seed)
    query = torch.randn(rows, heads, size, generator=random)
    keys, values = torch.randn(2, rows, kv, tokens, size, generator=random)
    output = torch.randn(5, heads * size, generator=random)
    valid = torch.randint(0, 2, (rows, tokens), generator=random).bool()
    valid[:, -1] = True
    return query, keys, values, output, valid


def attention_row(query, keys, valid, scaling):
    """The last token's row: float32 [B, heads, T]."""
    return attention_weights(query[:, :, None], keys, valid[:, None], scaling)[:, :, 0]


@quick
@given(shapes, seeds)
def test_attention_row_is_the_softmax_of_the_last_query(shape, seed):
    query, keys, _, _, valid = attention_parts(shape, seed)
    weights = attention_row(query, keys, valid, 0.5)
    for row in range(len(query)):
        wanted = reference.attention(query[row].tolist(), keys[row].tolist(), valid[row].tolist(), 0.5)
        torch.testing.assert_close(weights[row], torch.tensor(wanted), rtol=1e-4, atol=1e-6)


@quick
@given(shapes, seeds)
def test_projection_values_are_lengths_along_the_output(shape, seed):
    query, keys, values, output, valid = attention_parts(shape, seed)
    weights = attention_row(query, keys, valid, 0.5)
    for row, p in enumerate(projection_values(weights, values, output)):
        wanted = reference.projection_values(weights[row].tolist(), values[row].tolist(), output.tolist())
        torch.testing.assert_close(p, torch.tensor(wanted), rtol=1e-3, atol=1e-5)


@quick
@given(shapes, seeds)
def test_projection_values_add_up_to_the_length_of_the_output(shape, seed):
    query, keys, values, output, valid = attention_parts(shape, seed)
    weights = attention_row(query, keys, valid, 0.5)
    total = projection_values(weights, values, output).sum(-1)
    for row in range(len(query)):
        o = reference.attention_output(weights[row].tolist(), values[row].tolist(), output.tolist())
        torch.testing.assert_close(total[row], torch.tensor(o).norm(), rtol=1e-4, atol=1e-5)


def test_with_one_head_it_is_attention_times_length_times_cosine():
    query, keys, values, output, valid = attention_parts((1, 1, 1, 6), 7)
    weights = attention_row(query, keys, valid, 0.5)
    moved = values[0, 0] @ output.T
    o = weights[0, 0] @ moved
    cosine = torch.nn.functional.cosine_similarity(moved, o[None], dim=-1)
    wanted = weights[0, 0] * moved.norm(dim=-1) * cosine
    torch.testing.assert_close(projection_values(weights, values, output)[0], wanted)


def test_padding_has_no_weight():
    query, keys, values, output, _ = attention_parts((2, 2, 2, 6), 8)
    valid = torch.tensor([[False, False, True, True, True, True], [True] * 6])
    weights = attention_row(query, keys, valid, 0.5)
    assert (weights[0, :, :2] == 0).all()
    assert (projection_values(weights, values, output)[0, :2] == 0).all()


def test_attention_score_is_the_mean_over_heads():
    class Written(LayerView):
        def attention(self, rows="last"):
            return torch.tensor([[[[0.2, 0.8]], [[0.6, 0.4]]]])

    layer = Written(1, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.int64))
    torch.testing.assert_close(AttentionTokens().score(Stage(2, 1), layer), torch.tensor([[0.4, 0.6]]))


@pytest.mark.parametrize("number", [0, 3])
def test_the_row_of_a_real_layer_is_its_own_attention_and_output(eager_model, number):
    seen = {}
    layer = eager_model.get_decoder().layers[number]
    adapter = adapter_for(eager_model)
    inputs = batch("left-padded")

    def look(module, args, kwargs, output):
        hidden = args[0] if args else kwargs["hidden_states"]
        last = torch.full((len(hidden), 1), hidden.shape[1] - 1)
        seen["query"] = adapter.queries(layer, hidden, kwargs["position_embeddings"], last)[:, :, 0]
        seen["out"], seen["weights"] = output[0][:, -1], output[1][:, :, -1]

    handle = layer.self_attn.register_forward_hook(look, with_kwargs=True)
    with torch.no_grad():
        cache = eager_model(**inputs, use_cache=True).past_key_values.layers[number]
        handle.remove()
        weights = attention_row(seen["query"], cache.keys, inputs["attention_mask"].bool(), adapter.scaling(layer))
        torch.testing.assert_close(weights, seen["weights"], rtol=1e-4, atol=1e-6)
        total = projection_values(weights, cache.values, adapter.output_projection(layer)).sum(-1)
    torch.testing.assert_close(total, seen["out"].norm(dim=-1), rtol=1e-4, atol=1e-6)
