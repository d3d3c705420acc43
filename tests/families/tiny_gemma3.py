"""A tiny Gemma 3: GELU, images whose tokens see each other both ways, layers with and without a sliding window."""

from typing import Any

import torch
from family import IMAGE, TEXT, WIDE, Family, Inputs, Prompt, built, expanded, noise, padded, words
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

START, END, IMAGE_ID = 3, 4, 5
SIDE, PER_IMAGE, WINDOW = 56, 16, 96
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 14,
}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"] * 2
OWN = {"head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": WINDOW, "layer_types": LAYER_TYPES}


def gemma3(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    config = Gemma3Config(
        vision_config=VISION,
        text_config=TEXT | OWN | text,
        mm_tokens_per_image=PER_IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        image_token_index=IMAGE_ID,
    )
    return built(lambda: Gemma3ForConditionalGeneration(config), attention, dtype)


def inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    made = padded(expanded(prompts, lambda word: [START, *[IMAGE_ID] * PER_IMAGE, END]))
    made["token_type_ids"] = (made["input_ids"] == IMAGE_ID).long()
    pictures = [noise(prompt, place, 3, SIDE, SIDE) for prompt, place, _ in words(prompts, IMAGE, WIDE)]
    if pictures:
        made["pixel_values"] = torch.stack(pictures).to(dtype)
    return made


FAMILIES = {"gemma3": Family("gemma3", gemma3, inputs)}
