"""Tiny InternVL, Idefics3 and SmolVLM: images cut into tiles of one size, and videos that are series of images."""

from collections.abc import Callable
from typing import Any

import torch
from family import IMAGE, TEXT, VIDEO, WIDE, Family, Inputs, Prompt, built, expanded, noise, padded, words
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

IMAGE_ID, OPEN, CLOSE = 5, 6, 7
FENCE, WHOLE, BREAK, FRAME = 8, 9, 10, 11
HEADERS = {(row, column): 12 + 2 * row + column for row in range(2) for column in range(2)}
SIDE, TILE, FRAMES = 56, 4, 3  # a tile has 16 patches, which make 4 tokens
GRIDS = {IMAGE: (2, 2), WIDE: (1, 2)}  # rows and columns of tiles, to which the view of the whole image is added
TILES = {IMAGE: 5, WIDE: 3, VIDEO: FRAMES}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 14,
}


def tiles(prompt: Prompt, place: int, word: str) -> torch.Tensor:
    return noise(prompt, place, TILES[word], 3, SIDE, SIDE)


# --- InternVL ---------------------------------------------------------------------------------------------------


def internvl(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    config = InternVLConfig(
        vision_config=TOWER | {"model_type": "internvl_vision"},
        text_config=TEXT | {"model_type": "qwen2"} | text,
        image_token_id=IMAGE_ID,
        image_seq_length=TILE,
        tie_word_embeddings=False,
    )
    return built(lambda: InternVLForConditionalGeneration(config), attention, dtype)


def internvl_words(word: str) -> list[int]:
    """One run for all of an image's tiles; a video's frames are images, each behind a word."""
    if word == VIDEO:
        return [FRAME, OPEN, *[IMAGE_ID] * TILE, CLOSE] * FRAMES
    return [OPEN, *[IMAGE_ID] * (TILE * TILES[word]), CLOSE]


def internvl_inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    """The tiles of all images stand in one row."""
    pixels = [tiles(*found) for found in words(prompts, IMAGE, WIDE, VIDEO)]
    inputs = padded(expanded(prompts, internvl_words))
    return inputs | ({"pixel_values": torch.cat(pixels).to(dtype)} if pixels else {})


# --- Idefics3 and SmolVLM ---------------------------------------------------------------------------------------


def idefics(config: type, model: type) -> Callable[..., Any]:
    def make(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
        sizes = config(
            vision_config=TOWER,
            text_config=TEXT | {"model_type": "llama"} | text,
            image_token_id=IMAGE_ID,
            scale_factor=2,
        )
        return built(lambda: model(sizes), attention, dtype)

    return make


def fenced_words(word: str) -> list[int]:
    """A header before each tile, the whole view last, a fence before each header and behind the image."""
    whole = [FENCE, WHOLE, *[IMAGE_ID] * TILE, FENCE]
    if word == VIDEO:
        return [FRAME, *whole] * FRAMES
    rows, columns = GRIDS[word]
    cut: list[int] = []
    for row in range(rows):
        for column in range(columns):
            cut += [FENCE, HEADERS[row, column], *[IMAGE_ID] * TILE]
        cut.append(BREAK)
    return [*cut, BREAK, *whole]


def fenced_inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    """Tiles by row of the batch, with empty ones behind a row that has fewer."""
    inputs = padded(expanded(prompts, fenced_words))
    seen = [[tiles(*found) for found in words([prompt], IMAGE, WIDE, VIDEO)] for prompt in prompts]
    counts = [sum(map(len, row)) for row in seen]
    if not any(counts):
        return inputs
    pixels = torch.zeros(len(prompts), max(counts), 3, SIDE, SIDE, dtype=dtype)
    for row, images in enumerate(seen):
        if images:
            pixels[row, : counts[row]] = torch.cat(images).to(dtype)
    return inputs | {"pixel_values": pixels, "pixel_attention_mask": (pixels[:, :, 0] != 0).long()}


ALL = ("one", "left-padded", "several images", "no image", "video")
idefics3 = idefics(Idefics3Config, Idefics3ForConditionalGeneration)
smolvlm = idefics(SmolVLMConfig, SmolVLMForConditionalGeneration)
FAMILIES = {
    "internvl": Family("internvl", internvl, internvl_inputs, ALL),
    "idefics3": Family("idefics3", idefics3, fenced_inputs),
    "smolvlm": Family("smolvlm", smolvlm, fenced_inputs, ALL),
}
