"""A pruned model and the dense one in which the same is hidden, side by side."""

from collections.abc import Callable
from typing import Any

import torch
from tiny import answer

import coremat
from coremat.methods import registry
from coremat.runtime.stats import SequenceStats
from coremat.testing.answers import Answer
from coremat.testing.dense_reference import chosen, hidden_and_silenced, merged_states

TIGHT = 2e-5  # logits are of order one


def both(model: Any, method: Any, run: Callable[[], Any], backend: str = "auto") -> tuple[Any, Any]:
    """What `run` gives while the model is pruned, and with the masked dense one in its place."""
    sparse, dense, _ = _both(model, registry.method(method), run, backend)
    return sparse, dense


def compare(
    model: Any,
    inputs: dict[str, Any],
    method: Any,
    errors: dict[str, float],
    label: str,
    run: Callable[..., Answer] = answer,
    tolerance: float = TIGHT,
    backend: str = "auto",
    **options: Any,
) -> list[SequenceStats]:
    """Tokens equal, logits within `tolerance`. Returns the session's statistics."""
    sparse, dense, stats = _both(model, registry.method(method), lambda: run(model, inputs, **options), backend)
    errors[label] = float((sparse.logits - dense.logits).abs().max())
    assert errors[label] < tolerance, label
    assert torch.equal(sparse.tokens, dense.tokens), label
    return stats


def _both(model: Any, method: Any, run: Callable[[], Any], backend: str) -> tuple[Any, Any, list[SequenceStats]]:
    with coremat.apply(model, method, backend) as session, merged_states(session) as merged:
        sparse = run()
        choice, stats = chosen(session, merged), session.stats
    with hidden_and_silenced(model, method, choice):
        return sparse, run(), stats


def second_turn(model: Any, inputs: dict[str, Any], new: int = 3, ids: tuple[int, ...] = (50, 51, 52)) -> Answer:
    """Answer, then go on from the cache that came back, with a few more tokens in every row."""
    first = model.generate(**inputs, do_sample=False, max_new_tokens=new, return_dict_in_generate=True)
    whole = torch.cat([first.sequences, torch.tensor([ids] * len(first.sequences))], 1)
    added = whole.shape[1] - inputs["attention_mask"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, added), value=1)
    given = {"input_ids": whole, "attention_mask": mask, "past_key_values": first.past_key_values}
    return answer(model, given, new=new)
