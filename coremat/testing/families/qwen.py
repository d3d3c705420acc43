"""Tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of two shapes, videos, positions of three axes, DeepStack."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from coremat.testing.families.family import (
    IMAGE,
    TEXT,
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

START, END, IMAGE_ID, VIDEO_ID, STAMP = 3, 4, 5, 6, 7
PATCH, MERGE = 4, 2
GRIDS = {IMAGE: (1, 8, 6), WIDE: (1, 4, 8), VIDEO: (2, 8, 4)}  # frames (in pairs), rows and columns of patches

IDS = {
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "image_token_id": IMAGE_ID,
    "video_token_id": VIDEO_ID,
}
ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}}
VISION = {"depth": 3, "num_heads": 4, "patch_size": PATCH, "spatial_merge_size": MERGE}
WINDOWS = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "window_size": 16}
DEEPSTACK = {"deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64}


def qwen2_vl(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    vision = VISION | {"embed_dim": 32, "hidden_size": 64}
    config = Qwen2VLConfig(vision_config=vision, text_config=TEXT | ROTARY | text, **IDS)
    return build_model(lambda: Qwen2VLForConditionalGeneration(config), attention, dtype)


def qwen2_5_vl(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    vision = VISION | WINDOWS | {"fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=TEXT | ROTARY | text, **IDS)
    return build_model(lambda: Qwen2_5_VLForConditionalGeneration(config), attention, dtype)


def qwen3_vl(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    vision = VISION | DEEPSTACK | {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64}
    config = Qwen3VLConfig(vision_config=vision, text_config=TEXT | ROTARY | {"head_dim": 16} | text, **IDS)
    return build_model(lambda: Qwen3VLForConditionalGeneration(config), attention, dtype)


def tokens_of(word: str) -> int:
    """Tokens of an image or a video, without those around it."""
    frames, rows, columns = GRIDS[word]
    return frames * rows * columns // MERGE**2


def marked(word: str) -> list[int]:
    """As Qwen2-VL and Qwen2.5-VL write it: one run, between a start and an end."""
    return [START, *[VIDEO_ID if word == VIDEO else IMAGE_ID] * tokens_of(word), END]


def stamped(word: str) -> list[int]:
    """As Qwen3-VL writes it: a time stamp before every frame of a video."""
    frames = GRIDS[word][0]
    if word != VIDEO:
        return marked(word)
    return [STAMP, START, *[VIDEO_ID] * (tokens_of(word) // frames), END] * frames


def inputs(prompts: list[Prompt], dtype: torch.dtype, writes: Callable[[str], list[int]] = marked) -> Inputs:
    """writes(placeholder): its tokens, which differ between the Qwens."""
    made = left_pad(expand(prompts, {word: writes(word) for word in GRIDS}))
    ids = made["input_ids"]
    made["mm_token_type_ids"] = (ids == IMAGE_ID) + 2 * (ids == VIDEO_ID)
    for kinds, pixels, grid in [
        ((IMAGE, WIDE), "pixel_values", "image_grid_thw"),
        ((VIDEO,), "pixel_values_videos", "video_grid_thw"),
    ]:
        shown = list(placeholders(prompts, *kinds))
        if shown:
            patches = [noise(p, n, tokens_of(w) * MERGE**2, 3 * 2 * PATCH**2) for p, n, w in shown]
            made[pixels] = torch.cat(patches).to(dtype)
            made[grid] = torch.tensor([GRIDS[w] for _, _, w in shown])
    return made


FAMILIES = {
    "qwen2_vl": Family("qwen2_vl", qwen2_vl, inputs, VIDEO_BATCHES),
    "qwen2_5_vl": Family("qwen2_5_vl", qwen2_5_vl, inputs, VIDEO_BATCHES),
    "qwen3_vl": Family("qwen3_vl", qwen3_vl, partial(inputs, writes=stamped), VIDEO_BATCHES),
}
