"""What a model answers to dummy inputs: its tokens, and the logits and the cache behind them."""

from typing import Any, NamedTuple

import torch


class Answer(NamedTuple):
    """New tokens, int64 [B, t], their logits [B, t, V], and the cache after the last of them but one."""

    tokens: torch.Tensor
    logits: torch.Tensor
    cache: Any


def answer(model: Any, inputs: dict[str, Any], new: int = 5, **options: Any) -> Answer:
    """Generate `new` tokens, greedily unless the options of `generate` say otherwise."""
    options = {"do_sample": False, "max_new_tokens": new} | options
    out = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    return Answer(out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1), out.past_key_values)
