"""Tiny InternVL, Idefics3 and SmolVLM: images cut into tiles of one size, and videos that are series of images."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from coremat.testing.families.family import (
    IMAGE,
    TEXT,
    TOWER,
    VIDEO,
    VIDEO_BATCHES,
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

IMAGE_ID, OPEN, CLOSE = 5, 6, 7
FENCE, WHOLE, BREAK, FRAME = 8, 9, 10, 11
HEADERS = {(row, column): 12 + 2 * row + column for row in range(2) for column in range(2)}
SIDE, TILE, FRAMES = 56, 4, 3  # a tile has 16 patches, which make 4 tokens
GRIDS = {IMAGE: (2, 2), WIDE: (1, 2)}  # rows and columns of tiles, to which the view of the whole image is added
TILES = {IMAGE: 5, WIDE: 3, VIDEO: FRAMES}
VISION = TOWER | {"image_size": SIDE}


def tiles(prompt: Prompt, place: int, word: str) -> torch.Tensor:
    """Pixels of an image's tiles or a video's frames, [n, 3, SIDE, SIDE]."""
    return noise(prompt, place, TILES[word], 3, SIDE, SIDE)


# --- InternVL ---------------------------------------------------------------------------------------------------


def internvl(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    config = InternVLConfig(
        vision_config=VISION | {"model_type": "internvl_vision"},
        text_config=TEXT | {"model_type": "qwen2"} | text,
        image_token_id=IMAGE_ID,
        image_seq_length=TILE,
        tie_word_embeddings=False,
    )
    return build_model(lambda: InternVLForConditionalGeneration(config), attention, dtype)


def internvl_tokens(word: str) -> list[int]:
    """One run for all of an image's tiles; a video's frames are images, each behind a frame marker."""
    if word == VIDEO:
        return [FRAME, OPEN, *[IMAGE_ID] * TILE, CLOSE] * FRAMES
    return [OPEN, *[IMAGE_ID] * (TILE * TILES[word]), CLOSE]


def internvl_inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    """The tiles of all images stand in one row."""
    pixels = [tiles(*found) for found in placeholders(prompts, IMAGE, WIDE, VIDEO)]
    inputs = left_pad(expand(prompts, {word: internvl_tokens(word) for word in TILES}))
    return inputs | ({"pixel_values": torch.cat(pixels).to(dtype)} if pixels else {})


# --- Idefics3 and SmolVLM ---------------------------------------------------------------------------------------


def idefics(config: type, model: type) -> Callable[..., Any]:
    def make(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
        sizes = config(
            vision_config=VISION,
            text_config=TEXT | {"model_type": "llama"} | text,
            image_token_id=IMAGE_ID,
            scale_factor=2,
        )
        return build_model(lambda: model(sizes), attention, dtype)

    return make


def fenced_tokens(word: str) -> list[int]:
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


def fenced_inputs(prompts: list[Prompt], dtype: torch.dtype, taken: tuple[str, ...] = (IMAGE, WIDE)) -> Inputs:
    """Tiles by row of the batch, with empty ones behind a row that has fewer. taken: the family's placeholders."""
    inputs = left_pad(expand(prompts, {word: fenced_tokens(word) for word in taken}))
    seen = [[tiles(*found) for found in placeholders([prompt], *taken)] for prompt in prompts]
    counts = [sum(map(len, row)) for row in seen]
    if not any(counts):
        return inputs
    pixels = torch.zeros(len(prompts), max(counts), 3, SIDE, SIDE, dtype=dtype)
    for row, images in enumerate(seen):
        if images:
            pixels[row, : counts[row]] = torch.cat(images).to(dtype)
    return inputs | {"pixel_values": pixels, "pixel_attention_mask": (pixels[:, :, 0] != 0).long()}


idefics3 = idefics(Idefics3Config, Idefics3ForConditionalGeneration)
smolvlm = idefics(SmolVLMConfig, SmolVLMForConditionalGeneration)
FAMILIES = {
    "internvl": Family("internvl", internvl, internvl_inputs, VIDEO_BATCHES),
    "idefics3": Family("idefics3", idefics3, fenced_inputs),
    "smolvlm": Family("smolvlm", smolvlm, partial(fenced_inputs, taken=(IMAGE, WIDE, VIDEO)), VIDEO_BATCHES),
}
