"""Gemma 3's sliding windows: tokens are pruned while everything fits into them, and refused beyond."""

from contextlib import contextmanager

import pytest
import torch
from equivalence import compare
from tiny import answer
from transformers import GenerationConfig

import coremat
from coremat.decoding.graph_decoder import GraphDecoder
from coremat.errors import UnsupportedError
from coremat.testing.families.family import BOS, IMAGE
from coremat.testing.families.gemma3 import PER_IMAGE, WINDOW, gemma3, inputs

PRUNED = "corematching:tokens=4"
NEW = 6


@pytest.fixture(scope="module")
def model():
    return gemma3()


def prompt_of(length):
    """One image, and as much text as makes `length` tokens."""
    return inputs([[BOS, IMAGE, *([30] * (length - PER_IMAGE - 3))]], torch.float32)


def test_a_window_that_is_just_filled(model, errors):
    compare(model, prompt_of(WINDOW - NEW), PRUNED, errors, "gemma3, full window", new=NEW)


LIMITS = {
    "new": {"max_new_tokens": NEW},
    "all": {"max_length": WINDOW + 1},
    "config": {"generation_config": GenerationConfig(max_new_tokens=NEW, pad_token_id=0)},
}


@pytest.mark.parametrize("limit", LIMITS)
def test_one_token_beyond_the_window_is_refused_before_anything_runs(model, limit):
    beyond = pytest.raises(UnsupportedError, match=f"{WINDOW + 1} together; accepted .* up to {WINDOW}, the sliding")
    with running(model) as runs, coremat.apply(model, PRUNED), beyond:
        model.generate(**prompt_of(WINDOW - NEW + 1), **LIMITS[limit])
    assert not runs


def test_where_no_limit_is_given_there_are_twenty_new_tokens(model):
    with coremat.apply(model, PRUNED):
        assert model.generate(**prompt_of(WINDOW - 20)).shape[1] == WINDOW
        with running(model) as runs, pytest.raises(UnsupportedError, match=f"{WINDOW + 1} together"):
            model.generate(**prompt_of(WINDOW - 19))
    assert not runs


@contextmanager
def running(model):
    """A list that grows with every pass through the decoder."""
    runs = []
    hook = model.get_decoder().register_forward_pre_hook(lambda module, args: runs.append("ran"))
    yield runs
    hook.remove()


def test_a_loop_by_hand_that_leaves_the_window_is_refused(model):
    with coremat.apply(model, PRUNED), torch.no_grad():
        cache = model(**prompt_of(WINDOW - 1)).past_key_values
        model(input_ids=torch.tensor([[30]]), past_key_values=cache)
        with pytest.raises(UnsupportedError, match=f"{WINDOW + 1} together"):
            model(input_ids=torch.tensor([[30]]), past_key_values=cache)


def test_the_static_step_fills_a_window_and_goes_no_further(model):
    exact = prompt_of(WINDOW - NEW)
    dense = answer(model, exact, new=NEW).tokens
    assert torch.equal(GraphDecoder(model, None, NEW).generate(exact, NEW), dense)
    with pytest.raises(UnsupportedError, match=f"{WINDOW + 1} together; accepted by the static step: up to {WINDOW}"):
        GraphDecoder(model, None, NEW).generate(prompt_of(WINDOW - NEW + 1), NEW)


def test_core_neurons_alone_do_not_mind_the_window(model, errors):
    compare(model, prompt_of(WINDOW + 9), "core-neurons", errors, "gemma3, beyond the window", new=NEW)


def test_a_model_without_sliding_layers_has_no_window(errors):
    whole = gemma3(layer_types=["full_attention"] * 6)
    compare(whole, prompt_of(WINDOW + 9), PRUNED, errors, "gemma3, full attention")
