"""Sequences that a model has no positions for, and prompts that fit nothing, are refused in one sentence."""

import pytest
import torch
from tiny import answer, batch, make_inputs, tiny_llava

import coremat
from coremat.errors import DataError


def test_a_prompt_beyond_the_last_position_is_refused_before_anything_runs():
    model = tiny_llava(max_position_embeddings=24)
    with coremat.apply(model, "corematching"):
        answer(model, batch("one"), new=4)
        with pytest.raises(DataError, match=r"25 together; accepted: up to 24"):
            answer(model, batch("one"), new=5)


def test_an_image_too_many_is_refused(model):
    inputs = batch("one")
    inputs["pixel_values"] = torch.cat([inputs["pixel_values"]] * 2)
    with coremat.apply(model, "corematching"), pytest.raises(DataError, match="images do not fit"):
        answer(model, inputs)


def test_an_empty_prompt_is_refused(model):
    with coremat.apply(model, "corematching"), pytest.raises(DataError, match="at least one token"):
        model(input_ids=torch.zeros(1, 0, dtype=torch.int64))


def test_an_image_without_its_place_is_refused(model):
    inputs = make_inputs([1, 30, 31]) | {"pixel_values": batch("one")["pixel_values"]}
    with coremat.apply(model, "corematching"), pytest.raises(DataError, match="images do not fit"):
        answer(model, inputs)
