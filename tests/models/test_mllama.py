"""Llama 3.2 Vision: core neurons in the layers that look at the image too, unless there is none."""

import torch
from tiny import answer, chosen

import coremat
from coremat.testing.families.family import BOS, IMAGE, LAYERS, NEURONS
from coremat.testing.families.mllama import CROSS_LAYERS, inputs, mllama

NEURONS_ONLY = "core-neurons"
WITH_IMAGE, TEXT_ONLY = [[BOS, 30, IMAGE, 31, 32]], [[BOS, 40, 41, 42]]


def read(session, model, prompts):
    answer(model, inputs(prompts, torch.float32), new=3)
    return session.stats[0], chosen(session)


def test_cross_attention_layers_are_sparse_with_an_image_and_left_alone_without():
    model = mllama()
    with coremat.apply(model, NEURONS_ONLY) as session:
        for prompts, sparse in [(WITH_IMAGE, range(LAYERS)), (TEXT_ONLY, set(range(LAYERS)) - set(CROSS_LAYERS))]:
            stats, choice = read(session, model, prompts)
            assert sorted(choice.neurons) == sorted(sparse)
            assert [kept < NEURONS for kept in stats.neurons_kept] == [layer in sparse for layer in range(LAYERS)]


def test_a_text_after_an_image_is_answered_as_if_it_came_first():
    model = mllama()
    with coremat.apply(model, NEURONS_ONLY):
        first = answer(model, inputs(TEXT_ONLY, torch.float32))
        answer(model, inputs(WITH_IMAGE, torch.float32))
        assert torch.equal(answer(model, inputs(TEXT_ONLY, torch.float32)).logits, first.logits)


def test_the_cache_of_a_prompt_is_what_its_self_attention_layers_hold():
    model = mllama()
    with coremat.apply(model, NEURONS_ONLY) as session:
        stats, _ = read(session, model, WITH_IMAGE)
    key_value = 2 * 2 * 16  # keys and values of two heads
    assert stats.kv_bytes == stats.prompt_tokens * (LAYERS - len(CROSS_LAYERS)) * key_value * 4
