"""Tiny models of text alone: Llama, Qwen2, Qwen3, Mistral and Gemma 3, the last two with a sliding window.

Where a prompt of `PROMPTS` has an image, these have words.
"""

from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from coremat.testing.families.family import (
    IMAGE,
    TEXT,
    WIDE,
    Family,
    Inputs,
    Prompt,
    build_model,
    expand,
    left_pad,
)

WINDOW = 96
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"] * 2
OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": WINDOW},
    "gemma3_text": {
        "head_dim": 16,
        "query_pre_attn_scalar": 20,
        "sliding_window": WINDOW,
        "layer_types": LAYER_TYPES,
    },
}
TOKENS = {IMAGE: list(range(50, 66)), WIDE: list(range(66, 76))}


def text_model(model_type: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    config = AutoConfig.for_model(model_type, **(TEXT | OWN[model_type] | text))
    return build_model(lambda: AutoModelForCausalLM.from_config(config), attention, dtype)


def inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    """dtype: of pixels, which there are none of."""
    return left_pad(expand(prompts, TOKENS))


FAMILIES = {name: Family(name, partial(text_model, name), inputs, tokens=False, images=False) for name in OWN}
