"""GRIFFIN against loops: the norm over the tokens of what each neuron has of its token's norm."""

import math

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from neuron_views import layer_view, layers, voting
from strategies import betas, quick

from coremat.methods.griffin import Griffin
from coremat.testing import check_method


def griffin(tokens: list[list[float]], size: int, beta: float) -> list[int]:
    """tokens: [T][F], of those that have a say. Returns the chosen neurons."""
    squares = [0.0] * size
    for row in tokens:
        norm = math.sqrt(sum(value * value for value in row))
        for n, value in enumerate(row):
            squares[n] += (value / norm) ** 2 if norm else 0.0
    chosen = reference.highest([math.sqrt(square) for square in squares], reference.floor_of(beta, size))
    return [n for n in range(size) if chosen[n]]


@quick
@given(layers(), betas, st.sampled_from(["all", "text", "last"]))
def test_each_sequence_keeps_what_is_largest_beside_the_rest_of_its_tokens(layer, beta, voters):
    size = layer.activations.shape[-1]
    expected = [griffin(tokens, size, beta) for tokens in voting(layer, layer.voters(voters))]
    assert Griffin(beta=beta, voters=voters).neurons(layer).tolist() == expected


@quick
@given(layers(), betas)
def test_one_set_of_a_batch_is_that_of_all_its_tokens_together(layer, beta):
    method, size = Griffin(beta=beta, neuron_sets="batch"), layer.activations.shape[-1]
    together = [token for tokens in voting(layer, layer.valid) for token in tokens]
    assert method.neurons(layer).tolist() == [griffin(together, size, beta)]
    assert method.shares_neurons()


def test_signs_do_not_matter_nor_does_one_loud_token():
    loud, quiet = [9000.0, 8000.0, 0.0, 0.0], [1.0, 0.0, 0.0, -30.0]
    assert Griffin().neurons(layer_view(torch.tensor([[loud, quiet, quiet]]))).tolist() == [[0, 3]]


def test_a_token_without_activations_has_no_say():
    activations = torch.zeros(1, 2, 4, dtype=torch.float16)
    activations[0, 1, 2:] = 1.0
    assert Griffin().neurons(layer_view(activations)).tolist() == [[2, 3]]


def test_half_of_the_neurons_and_a_dense_prompt_are_the_defaults():
    assert (Griffin().neuron_count(11008), Griffin().prefill_neurons_from()) == (5504, None)


@pytest.mark.parametrize("options", [":neuron_sets=batch:voters=text", ":prefill_from=2:voters=last:beta=0.3"])
def test_other_options_hold_what_every_method_holds(options):
    findings = list(check_method(f"griffin{options}", ["llava", "qwen2_vl"]))
    assert not [str(finding) for finding in findings if finding.ok is False]
    assert any(finding.ok for finding in findings)
