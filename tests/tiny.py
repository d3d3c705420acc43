"""The tiny LLaVA of most tests with batches of its own."""

from typing import Any

import torch
from torch.nn.functional import pad

from coremat.models.shape import DecoderShape
from coremat.testing.answers import Answer, answer
from coremat.testing.dense_reference import chosen
from coremat.testing.families.family import BOS, IMAGE, LAYERS, NEURONS, PAD, VOCABULARY, Prompt
from coremat.testing.families.llava import IMAGE_ID, PER_IMAGE, SIDE, llava_inputs
from coremat.testing.families.llava import llava as tiny_llava

__all__ = [
    "BATCHES",
    "BOS",
    "IMAGE",
    "IMAGE_ID",
    "LAYERS",
    "NEURONS",
    "PAD",
    "PER_IMAGE",
    "SHAPE",
    "SIDE",
    "VOCABULARY",
    "Answer",
    "Prompt",
    "answer",
    "batch",
    "chosen",
    "make_inputs",
    "tiny_llava",
]

SHAPE = DecoderShape(hidden=64, attention=64, key_value=32, ffn=NEURONS, vocabulary=VOCABULARY)
BATCHES: dict[str, list[Prompt]] = {
    "one": [[BOS, 30, IMAGE, 31, 32]],
    "left-padded": [[BOS, 30, IMAGE, 31, 32], [BOS, 33, 34, 35, IMAGE, 36, 37]],
    "same-length": [[BOS, 30, IMAGE, 31, 32], [BOS, 39, IMAGE, 34, 36]],
    "ragged": [[BOS, 30, IMAGE, 31], [BOS, IMAGE, 33, IMAGE, 34, 35], [BOS, 40, 41]],
    "no-image": [[BOS, 30, 31, 32, 33, 34], [BOS, 35, 36]],
}


def make_inputs(*prompts: Prompt, dtype: torch.dtype = torch.float32, extra_padding: int = 0) -> dict[str, Any]:
    """A left-padded batch, as a processor would make it."""
    inputs = llava_inputs(list(prompts), dtype)
    return inputs | {name: pad(inputs[name], (extra_padding, 0)) for name in ("input_ids", "attention_mask")}


def batch(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return make_inputs(*BATCHES[name], dtype=dtype)
