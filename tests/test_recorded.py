"""What a record holds of a method, for readers that do not load it."""

import json

import pytest

from coremat.methods.registry import parse
from coremat.runtime.recorded import recorded


@pytest.mark.parametrize(
    ("spec", "tokens", "neurons"),
    [
        ("dense", False, False),
        ("corematching", True, True),
        ("core-tokens:tokens=all", False, False),
        ("core-neurons:prefill_from=1", False, True),  # the prefill's neurons are masked, not left out
        ("divprune", True, False),
        ("oracle-neurons", False, False),  # computes every neuron, to know the largest
        ("powerinfer", False, True),
        ("wina", False, True),
        ("two-level", False, True),
        ("cats", False, True),
        ("predictor", False, True),
        ("teal", False, True),
        ("corematching-released", False, False),
        ("fastv+core-neurons", True, True),
    ],
)
def test_what_a_method_shortens(spec: str, tokens: bool, neurons: bool) -> None:
    assert recorded(parse(spec))["shortens"] == {"tokens": tokens, "neurons": neurons}


def test_whose_times_mean_nothing() -> None:
    assert recorded(parse("oracle-neurons"))["accuracy_only"] is True
    assert recorded(parse("fastv+oracle-neurons"))["accuracy_only"] is True
    assert "accuracy_only" not in recorded(parse("two-level"))


def test_it_is_plain_json_with_options_or_parts() -> None:
    one, two = recorded(parse("fastv:tokens=64")), recorded(parse("fastv:tokens=64+core-neurons"))
    assert json.loads(json.dumps([one, two])) == [one, two]
    assert list(one) == ["name", "options", "shortens", "slot"]
    assert list(two) == ["name", "parts", "shortens", "slot"]
    assert two["parts"][0] == {"name": "fastv", "options": one["options"]}
