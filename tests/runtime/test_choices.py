"""What a session chooses inside a model: the loops of `reference.py` on the activations it saw; and a row of a padded
batch gets what it gets alone."""

from contextlib import ExitStack

import configs
import pytest
import reference
import torch
from tiny import BATCHES, IMAGE_ID, LAYERS, answer, batch, chosen, make_inputs

import coremat
from coremat.methods import registry
from coremat.methods.corematching.corematching import CoreMatching


def first_input(seen, number):
    def hook(module, args):
        seen.setdefault(number, args[0].clone())

    return hook


def seen_activations(model, method, inputs):
    """The session's choice, and the input of every `down_proj` in the prefill."""
    seen = {}
    with coremat.apply(model, method) as session, ExitStack() as undo:
        for number, layer in enumerate(model.get_decoder().layers):
            undo.callback(layer.mlp.down_proj.register_forward_pre_hook(first_input(seen, number)).remove)
        answer(model, inputs, new=2)
        return chosen(session), seen


def who_votes(voters, valid, image):
    if voters == "all":
        return valid
    if voters == "text":
        return [v and not i for v, i in zip(valid, image, strict=True)]
    return [False] * (len(valid) - 1) + [True]


def looked_up(method, rows, valid, image):
    """Core neurons of one layer and sequence, by the loops."""
    return reference.core_neurons(
        reference.votes(rows, method.alpha, who_votes(method.voters, valid, image)), method.beta
    )


BY_THE_PAPER = [
    name
    for name in configs.SEQUENCE_BY_SEQUENCE
    if isinstance(method := registry.parse(configs.CONFIGS[name]), CoreMatching) and method.prefill_from is None
]


@pytest.mark.parametrize("name", BY_THE_PAPER)
def test_neurons_and_tokens_are_those_of_the_equations(model, name):
    method, inputs = registry.parse(configs.CONFIGS[name]), batch("ragged")
    choice, seen = seen_activations(model, method, inputs)
    for row, ids in enumerate(inputs["input_ids"]):
        valid, image = choice.valid[row], ids == IMAGE_ID
        for number in range(LAYERS):
            real = choice.keep[row] if number >= method.prune_layer else valid
            rows = seen[number][row, -int(real.sum()) :].tolist()  # real columns are at the end, in their order
            core = looked_up(method, rows, [True] * len(rows), image[real].tolist())
            assert choice.neurons[number][row].tolist() == core, (row, number)
        if image.any():
            assert choice.keep[row, image].tolist() == image_tokens(method, seen, choice, row, image)


def image_tokens(method, seen, choice, row, image):
    number = method.prune_layer - 1
    core = choice.neurons[number][row].tolist()
    counts = reference.core_neuron_counts(seen[number][row, image].tolist(), core)
    pictures = [n // 16 for n in range(len(counts))]
    if method.tokens == "knee":
        return reference.one_per_image(reference.above_knee(counts, method.knee == "signed"), counts, pictures)
    share = isinstance(method.tokens, float)
    budget = reference.floor_of(method.tokens, len(counts)) if share else method.tokens
    return reference.best_with_each_image(counts, budget, pictures)


METHODS = {name: configs.CONFIGS[name] for name in configs.SEQUENCE_BY_SEQUENCE} | configs.BEFORE_DECODER


@pytest.mark.parametrize("name", METHODS)
def test_a_row_of_a_padded_batch_gets_what_it_gets_alone(exact_model, name):
    prompts = BATCHES["ragged"]
    with coremat.apply(exact_model, METHODS[name]) as session:
        together = answer(exact_model, batch("ragged", torch.float64))
        stats, choice = session.stats, chosen(session)
        for row, prompt in enumerate(prompts):
            alone = answer(exact_model, make_inputs(prompt, dtype=torch.float64))
            own = chosen(session)
            assert torch.equal(alone.tokens[0], together.tokens[row])
            torch.testing.assert_close(alone.logits[0], together.logits[row], rtol=1e-9, atol=1e-9)
            assert torch.equal(own.keep[0], choice.keep[row, -own.keep.shape[1] :])
            assert own.neurons.keys() == choice.neurons.keys()
            assert all(torch.equal(own.neurons[n][0], choice.neurons[n][row]) for n in own.neurons)
            assert session.stats[0].kept == stats[row].kept
            assert session.stats[0].kv_bytes == stats[row].kv_bytes


@pytest.mark.parametrize("name", ["paper", "core-neurons-count", "all-random"])
def test_a_row_of_a_padded_batch_in_single_precision(model, name):
    with coremat.apply(model, configs.CONFIGS[name]):
        together = answer(model, batch("left-padded"))
        for row, prompt in enumerate(BATCHES["left-padded"]):
            assert torch.equal(answer(model, make_inputs(prompt)).tokens[0], together.tokens[row])


@pytest.mark.parametrize("extra", [1, 4])
def test_padding_in_front_of_one_prompt_changes_nothing(exact_model, extra):
    prompt = BATCHES["one"][0]
    with coremat.apply(exact_model, "corematching:tokens=4"):
        plain = answer(exact_model, make_inputs(prompt, dtype=torch.float64))
        padded = answer(exact_model, make_inputs(prompt, dtype=torch.float64, extra_padding=extra))
    assert torch.equal(plain.tokens, padded.tokens)
    torch.testing.assert_close(plain.logits, padded.logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["core-neurons-count", "one-token", "fewest-ratio", "all-random", "attention-count", "fastv"]
)
def test_every_image_keeps_a_token(model, name):
    with coremat.apply(model, configs.CONFIGS[name]) as session:
        answer(model, batch("ragged"), new=2)
        pictures = {index // 16 for index in session.stats[1].kept}
    assert pictures == {0, 1}


def test_seeds_of_the_samples_may_be_given(model):
    inputs = batch("same-length")
    with coremat.apply(model, "random-tokens:tokens=5+core-neurons") as session:
        kept = []
        for seeds in ([1, 2], [1, 3], [1, 2]):
            session.sample_seeds = seeds
            answer(model, inputs, new=1)
            kept.append([s.kept for s in session.stats])
    assert kept[0] == kept[2]
    assert kept[0][0] == kept[1][0]
    assert kept[0][1] != kept[1][1]
