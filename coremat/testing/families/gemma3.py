"""A tiny Gemma 3: GELU, images whose tokens see each other both ways, layers with and without a sliding window."""

from typing import Any

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from coremat.testing.families.family import (
    IMAGE,
    TEXT,
    TOWER,
    WIDE,
    Family,
    Inputs,
    Prompt,
    build_model,
    expand,
    left_pad,
    noise,
    placeholders,
    stack_pixels,
)

START, END, IMAGE_ID = 3, 4, 5
SIDE, PER_IMAGE, WINDOW = 56, 16, 96
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"] * 2
OWN = {"head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": WINDOW, "layer_types": LAYER_TYPES}
TOKENS = {word: [START, *[IMAGE_ID] * PER_IMAGE, END] for word in (IMAGE, WIDE)}


def gemma3(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    config = Gemma3Config(
        vision_config=TOWER | {"image_size": SIDE},
        text_config=TEXT | OWN | text,
        mm_tokens_per_image=PER_IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        image_token_index=IMAGE_ID,
    )
    return build_model(lambda: Gemma3ForConditionalGeneration(config), attention, dtype)


def inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    made = left_pad(expand(prompts, TOKENS))
    made["token_type_ids"] = (made["input_ids"] == IMAGE_ID).long()
    images = [noise(prompt, place, 3, SIDE, SIDE) for prompt, place, _ in placeholders(prompts, IMAGE, WIDE)]
    return made | stack_pixels("pixel_values", images, dtype)


FAMILIES = {"gemma3": Family("gemma3", gemma3, inputs)}
