"""The tiny Video-LLaVA with a processor, in a folder that `coremat.load` reads."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
)

from coremat.testing.families.family import BOS, EOS, PAD, VOCABULARY
from coremat.testing.families.llava import IMAGE_ID, PATCHES, VIDEO_ID, VIEW, video_llava

UNKNOWN = 3
FRAME = PATCHES + 1  # tokens
TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<{{ part.type }}>{% endif %} {% endfor %}{% endfor %}answer"
)


def save_video_llava(folder: Path) -> Path:
    video_llava().save_pretrained(folder)
    _processor().save_pretrained(folder)
    return folder


def _processor() -> VideoLlavaProcessor:
    """Every id has a text of its own; questions are read letter by letter."""
    special = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": UNKNOWN, "<image>": IMAGE_ID, "<video>": VIDEO_ID}
    letters = {chr(ord("a") + number): 30 + number for number in range(26)}
    taken = set(special.values()) | set(letters.values())
    rest = {f"word{number}": number for number in range(VOCABULARY) if number not in taken}
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
