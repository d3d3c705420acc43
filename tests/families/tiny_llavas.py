"""Tiny LLaVA-NeXT, LLaVA-OneVision and Video-LLaVA: tiles with newlines, pooled videos, two towers."""

from typing import Any

import torch
from family import IMAGE, TEXT, VIDEO, WIDE, Family, Inputs, Prompt, built, expanded, noise, padded, words
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

IMAGE_ID, VIDEO_ID = 5, 6
VIEW, PATCHES, FRAMES = 28, 4, 4  # side and patches of what a tower sees at once; frames of a video
SIZES = {IMAGE: (56, 40), WIDE: (28, 56)}  # height and width; the first is cut into 2 x 2 tiles, the other into 1 x 2
TILES = {IMAGE: 4, WIDE: 2}
# The whole view, then rows of patches with a newline each: 4 rows of 2 that are not padding, 2 rows of 4.
TOKENS = {IMAGE: PATCHES + 4 * (2 + 1), WIDE: PATCHES + 2 * (4 + 1)}
GRID = [[28, 56], [56, 28], [56, 56]]
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": VIEW,
    "patch_size": 14,
}
CLIP = TOWER | {"model_type": "clip_vision_model", "projection_dim": 32}
SIGLIP = TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}


def views(prompt: Prompt, place: int, count: int, most: int) -> torch.Tensor:
    """`count` views of one image or video, behind them empty ones up to `most`."""
    seen = noise(prompt, place, count, 3, VIEW, VIEW)
    return torch.cat([seen, torch.zeros(most - count, 3, VIEW, VIEW)])


def tiled(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    """Pixels of each image: the whole view and its tiles."""
    images = list(words(prompts, IMAGE, WIDE))
    if not images:
        return {}
    most = 1 + max(TILES[word] for _, _, word in images)
    pixels = [views(prompt, place, 1 + TILES[word], most) for prompt, place, word in images]
    sizes = [SIZES[word] for _, _, word in images]
    return {"pixel_values": torch.stack(pixels).to(dtype), "image_sizes": torch.tensor(sizes)}


def videos(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    pixels = [views(prompt, place, FRAMES, FRAMES) for prompt, place, _ in words(prompts, VIDEO)]
    return {"pixel_values_videos": torch.stack(pixels).to(dtype)} if pixels else {}


# --- LLaVA-NeXT -------------------------------------------------------------------------------------------------


def llava_next(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    """Over a Mistral, as the released v1.6 is; its window is off."""
    mistral = TEXT | {"model_type": "mistral", "sliding_window": None} | text
    config = LlavaNextConfig(
        vision_config=CLIP, text_config=mistral, image_token_index=IMAGE_ID, image_grid_pinpoints=GRID
    )
    return built(lambda: LlavaNextForConditionalGeneration(config), attention, dtype)


def llava_next_inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    rows = expanded(prompts, lambda word: [IMAGE_ID] * TOKENS[word])
    return padded(rows) | tiled(prompts, dtype)


# --- LLaVA-OneVision --------------------------------------------------------------------------------------------


def llava_onevision(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    config = LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config=TEXT | {"model_type": "qwen2"} | text,
        image_token_index=IMAGE_ID,
        video_token_index=VIDEO_ID,
        image_grid_pinpoints=[[VIEW, VIEW], *GRID],
    )
    return built(lambda: LlavaOnevisionForConditionalGeneration(config), attention, dtype)


def llava_onevision_inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    """One image of a prompt is tiled; of several each has one view and a newline. A video's frames are pooled."""
    rows = []
    for prompt in prompts:
        alone = sum(part in (IMAGE, WIDE) for part in prompt) == 1
        tokens = {word: [IMAGE_ID] * (TOKENS[word] if alone else PATCHES + 1) for word in TOKENS}
        rows += expanded([prompt], (tokens | {VIDEO: [VIDEO_ID] * (FRAMES + 1)}).__getitem__)
    inputs = padded(rows) | tiled(prompts, dtype) | videos(prompts, dtype)
    counts = [sum(part in (IMAGE, WIDE) for part in prompt) for prompt in prompts]
    return inputs | ({"batch_num_images": torch.tensor(counts)} if any(counts) else {})


# --- Video-LLaVA ------------------------------------------------------------------------------------------------


def video_llava(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    config = VideoLlavaConfig(
        vision_config=CLIP,
        text_config=TEXT | {"model_type": "llama"} | text,
        image_token_index=IMAGE_ID,
        video_token_index=VIDEO_ID,
        image_seq_length=PATCHES,
        video_seq_length=FRAMES * (PATCHES + 1),
    )
    return built(lambda: VideoLlavaForConditionalGeneration(config), attention, dtype)


def video_llava_inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    image, video = [IMAGE_ID] * PATCHES, [VIDEO_ID] * (FRAMES * (PATCHES + 1))
    rows = expanded(prompts, {IMAGE: image, WIDE: image, VIDEO: video}.__getitem__)
    pixels = [noise(prompt, place, 3, VIEW, VIEW) for prompt, place, _ in words(prompts, IMAGE, WIDE)]
    images = {"pixel_values_images": torch.stack(pixels).to(dtype)} if pixels else {}
    return padded(rows) | images | videos(prompts, dtype)


ALL = ("one", "left-padded", "several images", "no image", "video")
FAMILIES = {
    "llava_next": Family("llava_next", llava_next, llava_next_inputs),
    "llava_onevision": Family("llava_onevision", llava_onevision, llava_onevision_inputs, ALL),
    "video_llava": Family("video_llava", video_llava, video_llava_inputs, ALL),
}
