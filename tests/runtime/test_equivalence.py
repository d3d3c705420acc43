"""Dropping tokens and neurons is the same as hiding and zeroing them in the dense model, to rounding."""

import configs
import pytest
import torch
from equivalence import both, compare
from tiny import BATCHES, BOS, IMAGE, answer, batch, make_inputs

import coremat


@pytest.mark.parametrize("prune_layer", [1, 2, 4])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("attention", ["model", "eager_model"])
def test_tokens_dropped_equal_tokens_hidden(request, errors, attention, name, prune_layer):
    method = f"core-tokens:tokens=0.4:prune_layer={prune_layer}"
    label = f"{attention}, {name}, prune_layer {prune_layer}"
    compare(request.getfixturevalue(attention), batch(name), method, errors, label)


@pytest.mark.parametrize("attention", ["model", "eager_model"])
def test_the_knees_own_ragged_choice_equals_tokens_hidden(request, errors, attention):
    stats = compare(request.getfixturevalue(attention), batch("same-length"), "corematching", errors, attention)
    assert stats[0].image_tokens_kept != stats[1].image_tokens_kept


@pytest.mark.parametrize("attention", ["model", "eager_model"])
@pytest.mark.parametrize("extra", [1, 5])
@pytest.mark.parametrize("prompts", [["one"], ["same-length"], ["left-padded"]])
def test_padding_that_every_row_has_is_hidden_once(request, errors, attention, extra, prompts):
    """All columns that stay are real then, though the model's own mask still begins with padding."""
    inputs = make_inputs(*BATCHES[prompts[0]], extra_padding=extra)
    compare(
        request.getfixturevalue(attention),
        inputs,
        "corematching:tokens=5",
        errors,
        f"{attention}, {prompts[0]} + {extra} of padding",
    )


def test_rows_that_keep_as_many_columns_from_different_padding(model, errors):
    inputs = make_inputs([BOS, 30, IMAGE, 31, 32, 33, 34], [BOS, *range(40, 49)])
    stats = compare(model, inputs, "corematching:tokens=4", errors, "equal columns of unequal prompts")
    assert [s.kv_bytes for s in stats] == [stats[0].kv_bytes] * 2
    assert stats[0].prompt_tokens != stats[1].prompt_tokens


METHODS = configs.CONFIGS | configs.BEFORE_DECODER


@pytest.mark.parametrize("name", METHODS)
def test_every_method_equals_hiding_and_zeroing(model, errors, name):
    compare(model, batch("ragged"), METHODS[name], errors, f"method {name}")


@pytest.mark.parametrize("name", BATCHES)
def test_decoding_on_core_neurons_equals_zeroing_the_others(model, errors, name):
    stats = compare(model, batch(name), "core-neurons", errors, f"neurons, {name}", new=8)
    assert all(set(s.neurons_kept) == {64} for s in stats)


@pytest.mark.parametrize("name", ["paper", "neuron-only", "neurons-in-prefill"])
def test_an_ffn_with_biases(bias_model, errors, name):
    compare(bias_model, batch("left-padded"), configs.CONFIGS[name], errors, f"biases, {name}")


def test_sparsity_does_something(model):
    """Or else all of the above would hold for a patch that does nothing."""
    dense = answer(model, batch("ragged"))
    for name in ("paper", "token-only", "neuron-only", "core-neurons-count"):
        with coremat.apply(model, configs.CONFIGS[name]):
            sparse = answer(model, batch("ragged"))
        assert (sparse.logits - dense.logits).abs().max() > 0.1, name


@pytest.mark.parametrize("attention", ["model", "eager_model", "bias_model"])
@pytest.mark.parametrize("name", BATCHES)
def test_keeping_everything_through_the_sparse_path_is_dense(request, attention, name):
    model, inputs = request.getfixturevalue(attention), batch(name)
    dense = answer(model, inputs)
    with coremat.apply(model, "corematching:tokens=1.0:beta=1.0") as session:
        sparse = answer(model, inputs)
        assert all(s.image_tokens_kept == s.image_tokens and set(s.neurons_kept) == {s.neurons} for s in session.stats)
    assert torch.equal(sparse.tokens, dense.tokens)
    assert (sparse.logits - dense.logits).norm() <= 1e-5 * dense.logits.norm()


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_equals_hiding_to_its_own_rounding(half_model, name):
    """One token, for the next one depends on it."""
    sparse, dense = both(half_model, METHODS[name], lambda: answer(half_model, batch("ragged", torch.bfloat16), new=1))
    assert (sparse.logits - dense.logits).abs().max() < 0.1
