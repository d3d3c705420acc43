"""Tiny LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision and Video-LLaVA.

Images of one size; tiles with newlines; pooled videos; two towers.
"""

from typing import Any

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
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
    stack_pixels,
)

IMAGE_ID, VIDEO_ID = 5, 6
SIDE, PER_IMAGE = 56, 16  # side and tokens of LLaVA-1.5's images
VIEW, PATCHES, FRAMES = 28, 4, 4  # side and patches of what a tower sees at once; frames of a video
SIZES = {IMAGE: (56, 40), WIDE: (28, 56)}  # height and width; the first is cut into 2 x 2 tiles, the other into 1 x 2
TILES = {IMAGE: 4, WIDE: 2}
# The whole view, then rows of patches with a newline each: 4 rows of 2 that are not padding, 2 rows of 4.
TOKENS = {IMAGE: PATCHES + 4 * (2 + 1), WIDE: PATCHES + 2 * (4 + 1)}
GRID = [[28, 56], [56, 28], [56, 56]]
CLIP = TOWER | {"image_size": VIEW, "model_type": "clip_vision_model", "projection_dim": 32}
SIGLIP = TOWER | {"image_size": VIEW, "model_type": "siglip_vision_model", "vision_use_head": False}


# --- LLaVA-1.5 --------------------------------------------------------------------------------------------------


def llava(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    """With `mlp_bias` in `text`, biases are drawn too: as initialised they are zero and have no effect."""
    config = LlavaConfig(
        vision_config=CLIP | {"image_size": SIDE},
        text_config=TEXT | {"model_type": "llama"} | text,
        image_token_index=IMAGE_ID,
    )
    vectors = bool(text.get("mlp_bias"))
    return build_model(lambda: LlavaForConditionalGeneration(config), attention, dtype, vectors)


def llava_inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    """Images have one shape, whatever the prompt says."""
    rows = expand(prompts, {word: [IMAGE_ID] * PER_IMAGE for word in (IMAGE, WIDE)})
    prompts = [[IMAGE if part == WIDE else part for part in prompt] for prompt in prompts]
    images = [noise(prompt, number, 3, SIDE, SIDE) for prompt in prompts for number in range(prompt.count(IMAGE))]
    return left_pad(rows) | stack_pixels("pixel_values", images, dtype)


# --- what the others share --------------------------------------------------------------------------------------


def views(prompt: Prompt, place: int, count: int, most: int) -> torch.Tensor:
    """`count` views of one image or video, behind them empty ones up to `most`."""
    seen = noise(prompt, place, count, 3, VIEW, VIEW)
    return torch.cat([seen, torch.zeros(most - count, 3, VIEW, VIEW)])


def tiled(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    """Pixels of each image: the whole view and its tiles."""
    images = list(placeholders(prompts, IMAGE, WIDE))
    if not images:
        return {}
    most = 1 + max(TILES[word] for _, _, word in images)
    pixels = [views(prompt, place, 1 + TILES[word], most) for prompt, place, word in images]
    sizes = [SIZES[word] for _, _, word in images]
    return {"pixel_values": torch.stack(pixels).to(dtype), "image_sizes": torch.tensor(sizes)}


def videos(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    """Pixels of each video's frames."""
    frames = [views(prompt, place, FRAMES, FRAMES) for prompt, place, _ in placeholders(prompts, VIDEO)]
    return stack_pixels("pixel_values_videos", frames, dtype)


# --- LLaVA-NeXT -------------------------------------------------------------------------------------------------


def llava_next(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    """Over a Mistral, as the released v1.6 is; its window is off."""
    mistral = TEXT | {"model_type": "mistral", "sliding_window": None} | text
    config = LlavaNextConfig(
        vision_config=CLIP, text_config=mistral, image_token_index=IMAGE_ID, image_grid_pinpoints=GRID
    )
    return build_model(lambda: LlavaNextForConditionalGeneration(config), attention, dtype)


def llava_next_inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    rows = expand(prompts, {word: [IMAGE_ID] * count for word, count in TOKENS.items()})
    return left_pad(rows) | tiled(prompts, dtype)


# --- LLaVA-OneVision --------------------------------------------------------------------------------------------


def llava_onevision(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    config = LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config=TEXT | {"model_type": "qwen2"} | text,
        image_token_index=IMAGE_ID,
        video_token_index=VIDEO_ID,
        image_grid_pinpoints=[[VIEW, VIEW], *GRID],
    )
    return build_model(lambda: LlavaOnevisionForConditionalGeneration(config), attention, dtype)


def llava_onevision_inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    """One image of a prompt is tiled; of several each has one view and a newline. A video's frames are pooled."""
    rows = []
    for prompt in prompts:
        alone = sum(part in (IMAGE, WIDE) for part in prompt) == 1
        tokens = {word: [IMAGE_ID] * (TOKENS[word] if alone else PATCHES + 1) for word in TOKENS}
        rows += expand([prompt], tokens | {VIDEO: [VIDEO_ID] * (FRAMES + 1)})
    inputs = left_pad(rows) | tiled(prompts, dtype) | videos(prompts, dtype)
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
    return build_model(lambda: VideoLlavaForConditionalGeneration(config), attention, dtype)


def video_llava_inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    image, video = [IMAGE_ID] * PATCHES, [VIDEO_ID] * (FRAMES * (PATCHES + 1))
    rows = expand(prompts, {IMAGE: image, WIDE: image, VIDEO: video})
    images = [noise(prompt, place, 3, VIEW, VIEW) for prompt, place, _ in placeholders(prompts, IMAGE, WIDE)]
    return left_pad(rows) | stack_pixels("pixel_values_images", images, dtype) | videos(prompts, dtype)


FAMILIES = {
    "llava": Family("llava", llava, llava_inputs),
    "llava_next": Family("llava_next", llava_next, llava_next_inputs),
    "llava_onevision": Family("llava_onevision", llava_onevision, llava_onevision_inputs, VIDEO_BATCHES),
    "video_llava": Family("video_llava", video_llava, video_llava_inputs, VIDEO_BATCHES),
}
