"""What a model family brings to a check: a tiny random model, and dummy inputs for it.

A family of your own is three definitions (`gemma3.py` beside this file is the shortest example):

1. `model(attention="sdpa", dtype=torch.float32, **text)`: the family's real config class at the size of `TOWER` and
   `TEXT`, the latter changed by `text`, and given to `build_model`.
2. `inputs(prompts, dtype)`: what the family's processor would return. `left_pad(expand(prompts, tokens))` makes the ids
   and their mask, `noise` the pixels of each image that `placeholders` finds.
3. `Family("model_type", model, inputs)`.

A prompt is a list of token ids and placeholders. Ids are below `VOCABULARY`: `PAD`, `BOS` and `EOS`, from 3 to 29 the
family's own (image tokens, separators), from 30 ordinary text. A placeholder stands for all tokens of one image
(`IMAGE`; `WIDE` has another shape where the family minds shapes) or of one video (`VIDEO`). `PROMPTS` are the batches
that all families share.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from coremat.errors import DataError, UnknownNameError

PAD, BOS, EOS = 0, 1, 2
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
IMAGE_BATCHES = ("one", "left-padded", "several images", "no image")
VIDEO_BATCHES = (*IMAGE_BATCHES, "video")

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
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 14,
}


def prompts_of(batch: str) -> list[Prompt]:
    """The prompts of this batch; UnknownNameError for a name that is not in `PROMPTS`."""
    if batch not in PROMPTS:
        raise UnknownNameError("batch", batch, PROMPTS)
    return PROMPTS[batch]


@dataclass(frozen=True)
class Family:
    """A model family as checks see it.

    name: its `model_type`.
    model(attention="sdpa", dtype=torch.float32): a random model on the CPU, with the same weights at each call.
    inputs(prompts, dtype): keyword arguments of `generate` for a left-padded batch; a row's pixels depend on its prompt
        alone, so that a batch can be held to its rows. DataError for a placeholder that the family does not take.
    batches: the names in `PROMPTS` that the family takes, `VIDEO_BATCHES` where it takes videos.
    tokens: whether image tokens stand in the decoder's sequence and can be pruned.
    images: whether it looks at images at all; a model of text alone has words in the place of each.
    rows: the batch in which the dense model gives each row what it gives it alone.
    """

    name: str
    model: Callable[..., Any]
    inputs: Callable[[list[Prompt], torch.dtype], Inputs]
    batches: tuple[str, ...] = IMAGE_BATCHES
    tokens: bool = True
    images: bool = True
    rows: str = "left-padded"

    def __post_init__(self) -> None:
        for name in (*self.batches, self.rows):
            prompts_of(name)

    def batch(self, name: str, dtype: torch.dtype = torch.float32) -> Inputs:
        """The inputs of the batch `name` of `PROMPTS`, with pixels of this dtype."""
        return self.inputs(prompts_of(name), dtype)


def build_model(make: Callable[[], Any], attention: str, dtype: torch.dtype, vectors: bool = False) -> Any:
    """The model of `make` with seeded random weights, ready to generate without end; the caller's random state stays.

    Matrices have std 0.08: the usual 0.02 gives logits so even that errors do not show. vectors: draw biases and norms
    too, which otherwise stay as `make` initialises them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
        for parameter in model.parameters():
            if parameter.dim() > 1 or vectors:
                torch.nn.init.normal_(parameter, std=0.08)
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    return model.to(dtype)


def expand(prompts: list[Prompt], tokens: Mapping[str, list[int]]) -> list[list[int]]:
    """The token ids of each prompt, where `tokens` are those that the processor writes for each placeholder.

    DataError for a placeholder that is not among them.
    """
    return [[token for part in prompt for token in _ids(part, tokens)] for prompt in prompts]


def _ids(part: int | str, tokens: Mapping[str, list[int]]) -> list[int]:
    if not isinstance(part, str):
        return [part]
    if part not in tokens:
        raise DataError(f"a prompt holds the placeholder {part!r}; accepted: {', '.join(map(repr, tokens))}.")
    return tokens[part]


def left_pad(rows: list[list[int]]) -> Inputs:
    """`input_ids` and `attention_mask`, int64 [B, S], padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def placeholders(prompts: list[Prompt], *wanted: str) -> Iterator[tuple[Prompt, int, str]]:
    """The `wanted` placeholders in reading order: the prompt, the place in it, and the placeholder."""
    for prompt in prompts:
        yield from ((prompt, place, part) for place, part in enumerate(prompt) if part in wanted)


def noise(prompt: Prompt, place: int, *size: int) -> torch.Tensor:
    """Pixels that depend on prompt and place alone, so that a row has in a batch what it has alone."""
    seed = zlib.crc32(repr((prompt, place)).encode())
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def stack_pixels(name: str, images: list[torch.Tensor], dtype: torch.dtype) -> Inputs:
    """Images of one size under the input's name, [N, ...]; nothing where there is none."""
    return {name: torch.stack(images).to(dtype)} if images else {}
