"""A tiny Llama 3.2 Vision: two of six layers look at the image, of up to four tiles, by cross-attention."""

from itertools import pairwise
from typing import Any

import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration

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
    noise,
    placeholders,
)

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
    model = build_model(lambda: MllamaForConditionalGeneration(config), attention, dtype)
    for name, parameter in model.named_parameters():
        if "cross_attn_" in name and name.endswith("_gate"):
            torch.nn.init.constant_(parameter, 0.9)
    return model


def inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    made = left_pad(expand(prompts, {word: [IMAGE_ID] for word in TILES}))
    most = int((made["input_ids"] == IMAGE_ID).sum(1).max())
    if not most:
        return made
    images = image_inputs(prompts, most, dtype)
    return made | images | {"cross_attention_mask": seen_by(made["input_ids"], images["aspect_ratio_mask"])}


def image_inputs(prompts: list[Prompt], most: int, dtype: torch.dtype) -> Inputs:
    """Tiles, shape and mask of each image [B, most, ...]; of one that is not there, the mask still has one tile."""
    pixels = torch.zeros(len(prompts), most, MOST_TILES, 3, SIDE, SIDE, dtype=dtype)
    shapes = torch.zeros(len(prompts), most, dtype=torch.int64)
    mask = torch.zeros(len(prompts), most, MOST_TILES, dtype=torch.int64)
    mask[..., 0] = 1
    for row, prompt in enumerate(prompts):
        for number, (_, place, word) in enumerate(placeholders([prompt], *TILES)):
            count = TILES[word]
            shapes[row, number] = count
            pixels[row, number, :count] = noise(prompt, place, count, 3, SIDE, SIDE).to(dtype)
            mask[row, number, :count] = 1
    return {"pixel_values": pixels, "aspect_ratio_ids": shapes, "aspect_ratio_mask": mask}


def seen_by(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, S, most, MOST_TILES]: an image's tiles are seen from its own token up to the next image's, or the end."""
    seen = torch.zeros(*ids.shape, *mask.shape[1:], dtype=torch.int64)
    for row, tokens in enumerate(ids):
        starts = (tokens == IMAGE_ID).nonzero().flatten().tolist()
        for number, (begin, end) in enumerate(pairwise([*starts, len(tokens)])):
            seen[row, begin:end, number] = mask[row, number]
    return seen


# A text that sees no image attends to all of them alike, also to those of other rows that are not there in its own.
FAMILIES = {"mllama": Family("mllama", mllama, inputs, tokens=False, rows="an image each")}
