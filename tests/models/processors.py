"""Each family's own processor, made without a download: from a model's config and a tokenizer of a few words.

`inputs_of(config, shown)` is what the processor makes of one picture or video.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

MARKS = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
MARKS += [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
QWEN = "<|vision_start|>{}<|vision_end|> see".format


def tokenizer(ids: dict[str, int], other: tuple[str, ...] = (), **named: str) -> Any:
    """ids: placeholders, by the ids that the model has for them; named: what the processor asks for by a name."""
    rest = [word for word in (*other, *named.values()) if word not in ids]
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "see": 99} | ids | {word: 100 + i for i, word in enumerate(rest)}
    made = Tokenizer(models.WordLevel(words, unk_token="see"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", extra_special_tokens=named)
    fast.add_special_tokens({"additional_special_tokens": [*ids, *rest]})
    return fast


def both(config: Any) -> Any:
    return tokenizer({"<image>": config.image_token_id, "<video>": config.video_token_id})


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def cropped(config: Any) -> dict[str, Any]:
    side = config.vision_config.image_size
    return {"size": {"shortest_edge": side}, "crop_size": square(side)}


def clip(config: Any) -> dict[str, Any]:
    """What a processor knows of a CLIP tower with a class token."""
    return {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }


def llava(config: Any) -> Any:
    images = hf.CLIPImageProcessor(**cropped(config))
    return hf.LlavaProcessor(images, tokenizer({"<image>": config.image_token_id}), **clip(config))


def llava_next(config: Any) -> Any:
    images = hf.LlavaNextImageProcessor(**cropped(config), image_grid_pinpoints=config.image_grid_pinpoints)
    return hf.LlavaNextProcessor(images, tokenizer({"<image>": config.image_token_id}), **clip(config))


def llava_onevision(config: Any) -> Any:
    size, vision = square(config.vision_config.image_size), config.vision_config
    return hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=config.image_grid_pinpoints),
        both(config),
        hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=config.vision_aspect_ratio,
    )


def video_llava(config: Any) -> Any:
    images, videos = hf.VideoLlavaImageProcessor(**cropped(config)), hf.VideoLlavaVideoProcessor(**cropped(config))
    return hf.VideoLlavaProcessor(images, videos, both(config), **clip(config))


def qwen(processor: Any, videos: Any) -> Callable[[Any], Any]:
    def make(config: Any) -> Any:
        vision = config.vision_config
        sizes = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
        sizes |= {"size": {"shortest_edge": 16, "longest_edge": 10**7}}
        ids = {"<|image_pad|>": config.image_token_id, "<|video_pad|>": config.video_token_id}
        ids |= {"<|vision_start|>": config.vision_start_token_id, "<|vision_end|>": config.vision_end_token_id}
        return processor(hf.Qwen2VLImageProcessor(**sizes), tokenizer(ids), videos(**sizes))

    return make


def internvl(config: Any) -> Any:
    size = square(config.vision_config.image_size[0])
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
    words = tokenizer({"<image>": config.image_token_id}, **names, context_image_token="<image>")
    images = hf.GotOcr2ImageProcessor(size=size, max_patches=4, crop_to_patches=True)
    return hf.InternVLProcessor(
        images, words, hf.InternVLVideoProcessor(size=size), image_seq_length=config.image_seq_length
    )


def gemma3(config: Any) -> Any:
    names = {"boi_token": "<image>", "eoi_token": "</image>", "image_token": "<soft>"}
    words = tokenizer({"<soft>": config.image_token_id}, **names)
    images = hf.Gemma3ImageProcessor(size=square(config.vision_config.image_size))
    return hf.Gemma3Processor(images, words, image_seq_length=config.mm_tokens_per_image)


def idefics3(config: Any) -> Any:
    """SmolVLM's, too, which writes images alike (its own asks for a package that spells numbers)."""
    side, vision = config.vision_config.image_size, config.vision_config
    images = hf.Idefics3ImageProcessor(size={"longest_edge": 2 * side}, max_image_size={"longest_edge": side})
    words = tokenizer({"<image>": config.image_token_id}, tuple(MARKS))
    return hf.Idefics3Processor(images, words, image_seq_len=(side // vision.patch_size // config.scale_factor) ** 2)


@dataclass(frozen=True)
class Maker:
    """make(config): the processor; image, video: the text that shows one."""

    make: Callable[[Any], Any]
    image: str = "<image> see"
    video: str = "<video> see"


MAKERS = {
    "llava": Maker(llava),
    "llava_next": Maker(llava_next),
    "llava_onevision": Maker(llava_onevision),
    "video_llava": Maker(video_llava),
    "internvl": Maker(internvl),
    "gemma3": Maker(gemma3),
    "idefics3": Maker(idefics3),
    "smolvlm": Maker(idefics3),
} | {
    name: Maker(qwen(processor, videos), QWEN("<|image_pad|>"), QWEN("<|video_pad|>"))
    for name, processor, videos in [
        ("qwen2_vl", hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor),
        ("qwen2_5_vl", hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor),
        ("qwen3_vl", hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor),
    ]
}


def inputs_of(config: Any, shown: np.ndarray) -> dict[str, torch.Tensor]:
    """shown: uint8, a picture [H, W, 3] or a video [T, H, W, 3]."""
    maker = MAKERS[config.model_type]
    processor = maker.make(config)
    if shown.ndim == 4:
        return dict(processor(text=[maker.video], videos=[shown], do_sample_frames=False, return_tensors="pt"))
    return dict(processor(text=[maker.image], images=[[shown]], return_tensors="pt"))
