"""What a model family brings to the tests that every family has to pass: a tiny random model, and its inputs.

A tiny module makes `FAMILIES`, its families by name. `PROMPTS` are common to all: ordinary tokens are numbers from 30
(below VOCABULARY), the words stand for a whole image (`WIDE`: of another shape, where that matters) or video.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

PAD, BOS, EOS = 0, 1, 2  # from 3 to 29: the family's own placeholders and separators
IMAGE, WIDE, VIDEO = "image", "wide image", "video"
LAYERS, NEURONS, VOCABULARY = 6, 160, 200

Prompt = list[int | str]
Inputs = dict[str, Any]

PROMPTS: dict[str, list[Prompt]] = {
    "one": [[BOS, 30, IMAGE, 31, 32]],
    "left-padded": [
        [BOS, 30, IMAGE, 31, 32],
        [BOS, 33, 34, 35, WIDE, 36, 37],
        [BOS, IMAGE, 38, IMAGE, 39, 40, 41],
        [BOS, 42, 43],
    ],
    "an image each": [[BOS, 30, IMAGE, 31, 32], [BOS, 33, 34, 35, WIDE, 36, 37]],
    "several images": [[BOS, IMAGE, 33, WIDE, 34, 35]],
    "no image": [[BOS, 30, 31, 32, 33, 34]],
    "video": [[BOS, 30, VIDEO, 31, 32]],
}


@dataclass(frozen=True)
class Family:
    """model(attention="sdpa", dtype=torch.float32): a random model that is the same at each call.

    inputs(prompts, dtype): a left-padded batch as the family's processor would make it; a row's pictures depend on its
    prompt alone (`noise`). batches: names in `PROMPTS`. tokens: whether tokens can be pruned. rows: the batch in
    which the dense model gives each row what it gives it alone.
    """

    name: str
    model: Callable[..., Any]
    inputs: Callable[[list[Prompt], torch.dtype], Inputs]
    batches: tuple[str, ...] = ("one", "left-padded", "several images", "no image")
    tokens: bool = True
    rows: str = "left-padded"

    def batch(self, name: str, dtype: torch.dtype = torch.float32) -> Inputs:
        return self.inputs(PROMPTS[name], dtype)


TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


def built(make: Callable[[], Any], attention: str, dtype: torch.dtype) -> Any:
    """The model of `make`, with weights of std 0.08: the usual 0.02 gives logits so even that errors do not show."""
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    return model.to(dtype)


def padded(rows: list[list[int]]) -> Inputs:
    """`input_ids` and `attention_mask`, padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def expanded(prompts: list[Prompt], tokens: Callable[[str], list[int]]) -> list[list[int]]:
    """The prompts as numbers; tokens(word): what the processor writes for it."""
    return [[t for part in p for t in (tokens(part) if isinstance(part, str) else [part])] for p in prompts]


def words(prompts: list[Prompt], *wanted: str) -> Iterator[tuple[Prompt, int, str]]:
    """Every one of the `wanted` words in reading order: its prompt, its place there, and the word."""
    for prompt in prompts:
        yield from ((prompt, place, part) for place, part in enumerate(prompt) if part in wanted)


def noise(prompt: Prompt, place: int, *size: int) -> torch.Tensor:
    """A picture that depends on its prompt and place alone, so that a row has in a batch what it has alone."""
    seed = zlib.crc32(repr((prompt, place)).encode())
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))
