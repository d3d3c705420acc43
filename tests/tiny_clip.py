"""A tiny random CLIP with a tokenizer of numbers, saved as a folder: the text tower of the tiny LLaVA families."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from coremat.testing.families.family import TOWER, VOCABULARY

START, END, UNKNOWN = VOCABULARY, VOCABULARY + 1, VOCABULARY + 2
LONGEST = 6  # tokens of a text, start and end among them
WIDTH = 24  # of the space in which texts and patches meet


def save_tiny_clip(folder: Path, side: int, **vision: Any) -> str:
    """For a tower that sees `side` pixels. vision: what is otherwise than in the families' towers."""
    _tokenizer().save_pretrained(folder)
    _clip(side, vision).save_pretrained(folder)
    return str(folder)


def _clip(side: int, vision: dict[str, Any]) -> CLIPModel:
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": VOCABULARY + 3, "max_position_embeddings": LONGEST, "bos_token_id": START}
    text |= {"eos_token_id": END, "pad_token_id": END}
    config = CLIPConfig(
        text_config=text, vision_config=TOWER | {"image_size": side} | vision, projection_dim=WIDTH, logit_scale=1.0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        clip = CLIPModel(config).eval()
        for parameter in clip.parameters():  # vectors near what they are, or all texts and patches would be alike
            parameter.data += torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.05)
        clip.text_model.embeddings.token_embedding.weight.data *= 10
    return clip


def _tokenizer() -> PreTrainedTokenizerFast:
    special = {"<start>": START, "<end>": END, "<unknown>": UNKNOWN}
    words = {str(number): number for number in range(VOCABULARY)} | special
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", unk_token="<unknown>"
    )
