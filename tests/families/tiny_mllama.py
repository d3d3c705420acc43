"""A tiny Llama 3.2 Vision: two of six layers look at the image, of up to four tiles, by cross-attention."""

from itertools import pairwise
from typing import Any

import torch
from family import IMAGE, TEXT, WIDE, Family, Inputs, Prompt, built, expanded, noise, padded
from transformers import MllamaConfig, MllamaForConditionalGeneration

IMAGE_ID, SIDE, MOST_TILES = 3, 28, 4
CROSS_LAYERS = [2, 4]
TILES = {IMAGE: 1, WIDE: 2}  # side by side; the number is also that shape's id
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_global_layers": 2,
    "intermediate_layers_indices": [1, 2],
    "vision_output_dim": 96,
    "attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 14,
    "max_num_tiles": MOST_TILES,
}


def mllama(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    """The gates of the cross-attention layers are open: closed, as they begin, no image has an effect."""
    shape = TEXT | {"cross_attention_layers": CROSS_LAYERS} | text
    config = MllamaConfig(vision_config=VISION, text_config=shape, image_token_index=IMAGE_ID)
    model = built(lambda: MllamaForConditionalGeneration(config), attention, dtype)
    for name, parameter in model.named_parameters():
        if "cross_attn_" in name and name.endswith("_gate"):
            torch.nn.init.constant_(parameter, 0.9)
    return model


def pictures(prompt: Prompt) -> list[tuple[int, str]]:
    return [(place, part) for place, part in enumerate(prompt) if isinstance(part, str)]


def seen_from(row: list[int]) -> list[tuple[int, int]]:
    """From where to where in its row each image is looked at: from its own mark to the next one, or the end."""
    marks = [place for place, token in enumerate(row) if token == IMAGE_ID]
    return list(pairwise([*marks, len(row)]))


def inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    made = padded(expanded(prompts, lambda word: [IMAGE_ID]))
    ids, most = made["input_ids"], max(len(pictures(prompt)) for prompt in prompts)
    if not most:
        return made
    pixels = torch.zeros(len(ids), most, MOST_TILES, 3, SIDE, SIDE, dtype=dtype)
    shapes = torch.zeros(len(ids), most, dtype=torch.int64)
    tiles = torch.zeros(len(ids), most, MOST_TILES, dtype=torch.int64)
    tiles[..., 0] = 1  # also of an image that is not there
    looks = torch.zeros(*ids.shape, most, MOST_TILES, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        spans = seen_from(ids[row].tolist())
        for number, ((place, word), (begin, end)) in enumerate(zip(pictures(prompt), spans, strict=True)):
            count = shapes[row, number] = TILES[word]
            pixels[row, number, :count] = noise(prompt, place, int(count), 3, SIDE, SIDE).to(dtype)
            tiles[row, number, :count] = 1
            looks[row, begin:end, number, :count] = 1
    return made | {
        "pixel_values": pixels,
        "aspect_ratio_ids": shapes,
        "aspect_ratio_mask": tiles,
        "cross_attention_mask": looks,
    }


# A text that sees no image attends to all of them alike, also to those of other rows that are not there in its own.
FAMILIES = {"mllama": Family("mllama", mllama, inputs, tokens=False, rows="an image each")}
