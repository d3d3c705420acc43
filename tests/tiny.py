"""A random LLaVA of 0.3 million parameters, prompts for it, and what a session chose for them."""

import zlib
from typing import Any, NamedTuple

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from coremat import Session

IMAGE = "image"  # stands for one whole image in a prompt
PAD, BOS, IMAGE_ID = 0, 1, 5
SIDE, PER_IMAGE = 56, 16
LAYERS, NEURONS, VOCABULARY = 6, 160, 200

Prompt = list[int | str]

BATCHES: dict[str, list[Prompt]] = {
    "one": [[BOS, 30, IMAGE, 31, 32]],
    "left-padded": [[BOS, 30, IMAGE, 31, 32], [BOS, 33, 34, 35, IMAGE, 36, 37]],
    "same-length": [[BOS, 30, IMAGE, 31, 32], [BOS, 39, IMAGE, 34, 36]],
    "ragged": [[BOS, 30, IMAGE, 31], [BOS, IMAGE, 33, IMAGE, 34, 35], [BOS, 40, 41]],
    "no-image": [[BOS, 30, 31, 32, 33, 34], [BOS, 35, 36]],
}


def text_config(**changes: Any) -> dict[str, Any]:
    shape = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": NEURONS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": 2,
    }
    return shape | changes


def tiny_llava(
    attention: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0, **text: Any
) -> LlavaForConditionalGeneration:
    """Weights of std 0.08: the usual 0.02 gives logits so even that errors do not show."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 14,
        "projection_dim": 32,
    }
    config = LlavaConfig(vision_config=vision, text_config=text_config(**text), image_token_index=IMAGE_ID)
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 or text.get("mlp_bias"):
            torch.nn.init.normal_(parameter, std=0.08)
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    return model.to(dtype)


def _picture(prompt: Prompt, number: int) -> torch.Tensor:
    """Noise that depends on the prompt alone, so that a row of a batch has the images that it has alone."""
    seed = zlib.crc32(repr((prompt, number)).encode())
    return torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def make_inputs(
    *prompts: Prompt, dtype: torch.dtype = torch.float32, extra_padding: int = 0
) -> dict[str, torch.Tensor]:
    """A left-padded batch, as a processor would make it."""
    rows = [[t for part in p for t in ([IMAGE_ID] * PER_IMAGE if part == IMAGE else [part])] for p in prompts]
    width = max(map(len, rows)) + extra_padding
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    pictures = [_picture(p, n) for p in prompts for n in range(p.count(IMAGE))]
    if pictures:
        inputs["pixel_values"] = torch.stack(pictures).to(dtype)
    return inputs


def batch(name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return make_inputs(*BATCHES[name], dtype=dtype)


class Answer(NamedTuple):
    """New tokens [B, t], their logits [B, t, V], and the cache that is left."""

    tokens: torch.Tensor
    logits: torch.Tensor
    cache: Any


def answer(
    model: LlavaForConditionalGeneration, inputs: dict[str, torch.Tensor], new: int = 5, **options: Any
) -> Answer:
    """Greedy, unless the options say otherwise."""
    options = {"do_sample": False, "max_new_tokens": new} | options
    out = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    return Answer(out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1), out.past_key_values)


class Chosen(NamedTuple):
    """keep: bool [B, S], the prompt's columns that stay; valid: its real ones; neurons: per layer, int64 [B, m]."""

    keep: torch.Tensor
    valid: torch.Tensor
    neurons: dict[int, torch.Tensor]


def chosen(session: Session) -> Chosen:
    """The one place where tests look behind `session.stats`."""
    prompt = session._prompt
    assert prompt is not None
    return Chosen(prompt.keep, prompt.valid, dict(prompt.neurons))
