"""Distances held to a slow softmax in float64, and the forced answers to decoding by hand and to decoding freely."""

import math
from typing import Any

import pytest
import torch

import coremat
from coremat.errors import ConfigError, DataError
from coremat.fidelity import AT_ONCE, Fidelity, compare, dense_answer, measure
from coremat.methods.dense import Dense
from coremat.testing.families import FAMILIES

NEW = 8
METHODS = ("dense", "core-neurons", "griffin", "oracle-neurons")
TOKENS = ("corematching:prune_layer=1:tokens=2", "fastv:tokens=2:prune_layer=1", "divprune:tokens=2")
FAMILY_METHODS = {"llava": METHODS + TOKENS, "qwen2_vl": METHODS + TOKENS, "llama": METHODS}
CASES = [(family, method) for family, methods in FAMILY_METHODS.items() for method in methods]


def slow(dense: torch.Tensor, other: torch.Tensor, tokens: torch.Tensor) -> list[tuple[float, bool, float]]:
    found = []
    for p_logits, q_logits, token in zip(dense.tolist(), other.tolist(), tokens.tolist(), strict=True):
        p, q = softmax(p_logits), softmax(q_logits)
        kl = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)
        agree = max(range(len(p)), key=p.__getitem__) == max(range(len(q)), key=q.__getitem__)
        found.append((kl, agree, -math.log(q[token])))
    return found


def softmax(logits: list[float]) -> list[float]:
    most = max(logits)
    parts = [math.exp(one - most) for one in logits]
    return [part / sum(parts) for part in parts]


@pytest.mark.parametrize("rows", [1, AT_ONCE - 1, AT_ONCE + 3])
def test_distances_are_those_of_a_slow_softmax(rows: int) -> None:
    torch.manual_seed(rows)
    dense, tokens = 4 * torch.randn(rows, 50), torch.randint(50, (rows,))
    other = dense + torch.randn(rows, 50)
    dense[0, 3] = -torch.inf  # a token that the dense model hides
    found = compare(dense, other, tokens)
    kl, agree, nll = zip(*slow(dense, other, tokens), strict=True)
    assert found.kl.tolist() == pytest.approx(kl, rel=1e-9)
    assert found.nll.tolist() == pytest.approx(nll, rel=1e-9)
    assert found.agree.tolist() == list(agree)
    assert found.kl.dtype == torch.float64


def test_small_differences_of_large_logits_are_not_lost() -> None:
    """In float32 the sum over a vocabulary would be rounding."""
    dense = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)) + 80
    other = dense.clone()
    other[0, 7] += 1e-3
    [(kl, _, _)] = slow(dense, other, torch.zeros(1, dtype=torch.int64))
    assert compare(dense, other, torch.zeros(1, dtype=torch.int64)).kl.item() == pytest.approx(kl, rel=1e-4)
    assert kl < 1e-9


def test_a_distribution_is_at_no_distance_from_itself() -> None:
    logits = torch.randn(5, 40)
    logits[2, 4] = -torch.inf
    found = compare(logits, logits.clone(), logits.argmax(-1))
    assert found.kl.tolist() == [0.0] * 5
    assert found.agree.all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_told(value: float) -> None:
    dense = torch.randn(3, 10)
    other = dense.clone()
    other[1, 4] = value
    with pytest.raises(DataError, match="logits at position 1 of the answer are not finite"):
        compare(dense, other, torch.zeros(3, dtype=torch.int64))


# --- along an answer --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: (FAMILIES[name].model(), FAMILIES[name].batch("one")) for name in FAMILY_METHODS}


@pytest.fixture(scope="module")
def measured(models: dict[str, Any]) -> dict[str, dict[str, Fidelity]]:
    return {name: measure(*models[name], methods, NEW) for name, methods in FAMILY_METHODS.items()}


def freely(model: Any, inputs: dict[str, Any], method: str) -> torch.Tensor:
    with coremat.apply(model, method), torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    return output[0, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("family", FAMILY_METHODS)
def test_dense_is_at_no_distance_from_itself(measured: dict[str, Any], family: str) -> None:
    dense = measured[family]["dense"]
    assert dense.kl.tolist() == [0.0] * NEW
    assert dense.agree.all()
    assert dense.first_difference is None


@pytest.mark.parametrize(("family", "method"), CASES)
def test_decoding_freely_leaves_the_answer_where_it_is_said(
    models: dict[str, Any], measured: dict[str, Any], family: str, method: str
) -> None:
    model, inputs = models[family]
    found = measured[family][method]
    dense, own = freely(model, inputs, "dense"), freely(model, inputs, method)
    same = [a == b for a, b in zip(dense.tolist(), own.tolist(), strict=True)]
    first = found.first_difference
    assert first == (None if all(same) else same.index(False))
    if first is not None:
        assert found.free[first] == own[first]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_the_path_is_that_of_decoding_by_hand(
    models: dict[str, Any], measured: dict[str, Any], family: str, method: str
) -> None:
    """Token by token, by calls of the model: prefill with the method, then cached steps with the dense tokens."""
    model, inputs = models[family]
    with coremat.apply(model, Dense()) as session:
        answer = dense_answer(session, inputs, NEW)
    logits = by_hand(model, inputs, method, answer.tokens)
    assert answer.tokens.tolist() == freely(model, inputs, "dense").tolist()
    kl, agree, nll = zip(*slow(answer.logits, logits, answer.tokens), strict=True)
    found = measured[family][method]
    assert found.kl.tolist() == pytest.approx(kl, rel=1e-3, abs=1e-7)
    assert found.nll.tolist() == pytest.approx(nll, rel=1e-4)
    assert found.agree.tolist() == list(agree)
    assert found.free.tolist() == logits.argmax(-1).tolist()


def by_hand(model: Any, inputs: dict[str, Any], method: str, tokens: torch.Tensor) -> torch.Tensor:
    """[T, V]"""
    with coremat.apply(model, method), torch.inference_mode():
        output = model(**inputs, use_cache=True)
        logits = [output.logits[0, -1]]
        for token in tokens[:-1]:
            output = model(input_ids=token[None, None], past_key_values=output.past_key_values, use_cache=True)
            logits.append(output.logits[0, -1])
    return torch.stack(logits)


def test_what_is_saved_is_that_of_the_prompt(measured: dict[str, Any]) -> None:
    found = measured["llava"]
    assert found["fastv:tokens=2:prune_layer=1"].stats.image_tokens_kept == 2
    assert found["core-neurons"].stats.ffn_bytes_per_token < found["dense"].stats.ffn_bytes_per_token


def test_an_answer_ends_where_the_dense_one_does(models: dict[str, Any]) -> None:
    """The end token is forced as any other, and what a method would end earlier goes on."""
    model, inputs = models["llama"]
    tokens = freely(model, inputs, "dense")
    free = freely(model, inputs, "core-neurons")
    kept, model.generation_config.eos_token_id = model.generation_config.eos_token_id, int(tokens[5])
    try:
        length = tokens.tolist().index(int(tokens[5])) + 1
        assert len(measure(model, inputs, ["core-neurons"], NEW)["core-neurons"].kl) == length
        [early, *_] = [one for one in free.tolist() if one not in tokens.tolist()]
        model.generation_config.eos_token_id = early  # where core neurons would end
        assert len(measure(model, inputs, ["core-neurons"], NEW)["core-neurons"].kl) == NEW
        model.generation_config.eos_token_id = [int(tokens[0])]
        with pytest.raises(DataError, match="the dense model's answer is empty"):
            measure(model, inputs, ["core-neurons"], NEW)
    finally:
        model.generation_config.eos_token_id = kept


def test_decoding_freely_is_under_the_models_own_settings(models: dict[str, Any]) -> None:
    model, inputs = models["llama"]
    model.generation_config.repetition_penalty = 5.0
    try:
        found = measure(model, inputs, ["dense", "griffin"], NEW)
        dense, own = freely(model, inputs, "dense"), freely(model, inputs, "griffin")
    finally:
        model.generation_config.repetition_penalty = None
    same = [a == b for a, b in zip(dense.tolist(), own.tolist(), strict=True)]
    assert found["dense"].first_difference is None
    assert found["dense"].kl.tolist() == [0.0] * NEW
    assert found["griffin"].first_difference == (None if all(same) else same.index(False))


def test_bad_input(models: dict[str, Any]) -> None:
    model, inputs = models["llama"]
    with pytest.raises(ConfigError, match="4 rows; accepted: one prompt"):
        measure(model, FAMILIES["llama"].batch("left-padded"), ["dense"])
    with pytest.raises(ConfigError, match="new_tokens is 0"):
        measure(model, inputs, ["dense"], 0)
    with pytest.raises(ConfigError, match="accepted: each once"):
        measure(model, inputs, ["dense", Dense()])
