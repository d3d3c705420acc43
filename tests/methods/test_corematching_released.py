"""The released code's method: what it zeroes, what it leaves, and that nothing gets shorter."""

import pytest
import torch
from tiny import LAYERS, answer, batch, tiny_llava

import coremat
from coremat.errors import ConfigError, UnsupportedError
from coremat.methods import registry
from coremat.methods.corematching_released import above

RELEASED = "corematching-released"


def test_strictly_above_the_knee():
    assert above(torch.tensor([9, 1, 8, 1, 2, 1])).tolist() == [True, False, True, False, False, False]
    assert above(torch.tensor([3, 3, 3])).tolist() == [False] * 3


def counted_by_hand(model, inputs) -> dict[int, torch.Tensor]:
    """Which image tokens layer 5 leaves, row by row, from its activations in the dense model."""
    seen = {}
    down = model.get_decoder().layers[5].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda module, args: seen.setdefault("A", args[0]))
    answer(model, inputs, new=1)
    handle.remove()
    left = {}
    for row, ids in enumerate(inputs["input_ids"]):
        active = [{n for n, value in enumerate(token) if value > 0} for token in seen["A"][row].tolist()]
        image = [column for column, token in enumerate(ids.tolist()) if token == 5]
        counts = torch.tensor([len(active[column] & active[-5]) for column in image], dtype=torch.int64)
        left[row] = torch.tensor(image)[above(counts)] if image else torch.tensor([], dtype=torch.int64)
    return left


@pytest.mark.parametrize("name", ["one", "left-padded", "ragged", "no-image"])
def test_layer_5_has_zeros_where_the_count_is_low_and_the_dense_values_elsewhere(model, name):
    inputs = batch(name)
    dense = answer(model, inputs, new=1).cache
    left = counted_by_hand(model, inputs)
    with coremat.apply(model, RELEASED):
        found = answer(model, inputs, new=1).cache
    for number in range(LAYERS):
        for own, other in zip(
            (found.layers[number].keys, found.layers[number].values),
            (dense.layers[number].keys, dense.layers[number].values),
            strict=True,
        ):
            expected = other.clone()
            for row, ids in enumerate(inputs["input_ids"]) if number == 5 else ():
                gone = sorted(set((ids == 5).nonzero()[:, 0].tolist()) - set(left[row].tolist()))
                expected[row, :, gone] = 0
            torch.testing.assert_close(own, expected)


def test_the_first_token_is_the_dense_models_and_later_ones_are_not(model):
    dense = answer(model, batch("one"), new=3)
    with coremat.apply(model, RELEASED):
        released = answer(model, batch("one"), new=3)
    assert torch.equal(released.logits[:, 0], dense.logits[:, 0])
    assert not torch.allclose(released.logits[:, 1], dense.logits[:, 1])


def test_nothing_gets_shorter(model):
    with coremat.apply(model, "dense") as session:
        answer(model, batch("one"), new=1)
        [dense] = session.stats
    with coremat.apply(model, RELEASED) as session:
        answer(model, batch("one"), new=1)
        [released] = session.stats
    assert (released.kv_bytes, released.image_tokens_kept) == (dense.kv_bytes, dense.image_tokens)


def test_a_shallow_model_is_refused():
    with pytest.raises(UnsupportedError, match="5 layers"):
        coremat.apply(tiny_llava(num_hidden_layers=5), RELEASED).__enter__()


def test_it_goes_with_nothing_else():
    with pytest.raises(ConfigError, match=r"joins cache \+ neurons; accepted"):
        registry.parse(f"{RELEASED}+core-neurons")
