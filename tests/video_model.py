"""A random Video-LLaVA of 0.3 million parameters with its processor, in a folder that `coremat.load` reads."""

from pathlib import Path

import torch
from tiny import text_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
)

PAD, BOS, EOS, UNKNOWN, IMAGE_ID, VIDEO_ID, WORDS = 0, 1, 2, 3, 5, 6, 200
VIEW, PATCHES = 28, 4  # side and patches of a frame, which has one token more
FRAME = PATCHES + 1
TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<{{ part.type }}>{% endif %} {% endfor %}{% endfor %}answer"
)


def save_video_llava(folder: Path) -> Path:
    _model().save_pretrained(folder)
    _processor().save_pretrained(folder)
    return folder


def _model() -> VideoLlavaForConditionalGeneration:
    """Weights of std 0.08: the usual 0.02 gives logits so even that errors do not show."""
    tower = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": VIEW,
        "patch_size": 14,
        "projection_dim": 32,
    }
    ids = {"image_token_index": IMAGE_ID, "video_token_index": VIDEO_ID}
    config = VideoLlavaConfig(vision_config=tower, text_config=text_config(), image_seq_length=PATCHES, **ids)
    torch.manual_seed(0)
    model = VideoLlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    model.generation_config.eos_token_id = None
    return model


def _processor() -> VideoLlavaProcessor:
    """Every id has a text of its own; questions are read letter by letter."""
    special = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": UNKNOWN, "<image>": IMAGE_ID, "<video>": VIDEO_ID}
    letters = {chr(ord("a") + number): 30 + number for number in range(26)}
    taken = set(special.values()) | set(letters.values())
    rest = {f"word{number}": number for number in range(WORDS) if number not in taken}
    splitting = Tokenizer(models.WordLevel({**special, **letters, **rest}, unk_token="<unk>"))
    letter_by_letter = pre_tokenizers.Split("", "isolated")
    splitting.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), letter_by_letter])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=splitting,
        pad_token="<pad>",
        additional_special_tokens=["<image>", "<video>"],
        padding_side="left",
        chat_template=TEMPLATE,
    )
    size = {"size": {"shortest_edge": VIEW}, "crop_size": {"height": VIEW, "width": VIEW}}
    return VideoLlavaProcessor(
        VideoLlavaImageProcessor(**size),
        VideoLlavaVideoProcessor(**size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
