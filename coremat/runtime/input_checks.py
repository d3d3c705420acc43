"""What a call brings: the prompts of a batch, read and checked, and the calls that sparse models cannot take.

Each refusal is one sentence, before anything runs where that can be known.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from coremat.errors import ConfigError, DataError, UnsupportedError
from coremat.models.adapter import Adapter
from coremat.runtime.prompt import Prompt
from coremat.runtime.window import check_positions, check_window, tokens_to_come

NO_CACHE = "the model runs without a KV cache, with which the choice of tokens and neurons lives: leave use_cache on."
NOT_IN_ONE_PASS = ("prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_model")
PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos")


def check_generate(adapter: Adapter, window: int | None, inputs: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuses ways of generating which do not read the prompt, and it alone, in one pass.

    window: the sliding window that prompt and answer have to fit into, None for no window. inputs, kwargs: of
    `generate`.
    """
    config = kwargs.get("generation_config") or adapter.model.generation_config
    tokens = tokens_to_come(inputs, kwargs, config)
    check_window(window, tokens)
    check_positions(getattr(adapter.decoder.config, "max_position_embeddings", None), tokens)
    for name in NOT_IN_ONE_PASS:
        if kwargs.get(name, getattr(config, name, None)) is not None:
            raise UnsupportedError(f"{name} is given; accepted: leave it out, the prompt is read in one pass.")


def read_prompt(adapter: Adapter, given: Mapping[str, Any], needs_ids: bool, seeds: Sequence[int] | None) -> Prompt:
    """given: the arguments of the model's forward, by name; needs_ids: image tokens have to be told from text; seeds:
    one per sequence, None to take them from the ids."""
    if given.get("use_cache") is False:
        raise UnsupportedError(NO_CACHE)
    ids, embeds, mask = (given.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask"))
    if ids is None and needs_ids:
        raise UnsupportedError("inputs_embeds came without input_ids, which tell the image tokens: pass input_ids.")
    if ids is None and embeds is None:
        raise DataError("neither input_ids nor inputs_embeds came; accepted: input_ids, or embeddings of text.")
    like: torch.Tensor = given["inputs_embeds"][..., 0] if ids is None else ids
    if not like.numel():
        raise DataError(f"the prompts have shape {tuple(like.shape)}; accepted: at least one token in each.")
    if mask is not None and (mask.dim() != 2 or mask.shape[1] != like.shape[1]):
        raise UnsupportedError(f"attention_mask has shape {tuple(mask.shape)}; accepted: {tuple(like.shape)}.")
    valid = torch.ones_like(like, dtype=torch.bool) if mask is None else mask.bool()
    if not valid[:, -1].all():
        raise UnsupportedError("the prompts are padded on the right; accepted: padding on the left.")
    images = torch.full_like(valid, -1, dtype=torch.int64) if ids is None else adapter.visual_index(ids)
    return Prompt(images, valid, lambda: _seeds(like, valid, seeds))


def sample_seeds(input_ids: torch.Tensor, valid: torch.Tensor) -> list[int]:
    """One number per sequence, from its own token ids, so that a padded batch draws what each sequence draws alone.

    input_ids: [B, S], or a column of the embeddings where there are no ids; valid: bool [B, S].
    """
    exact = input_ids.float() if input_ids.is_floating_point() else input_ids  # numpy has no bfloat16
    rows = zip(exact.cpu(), valid.cpu(), strict=True)
    return [zlib.crc32(ids[real].numpy().tobytes()) for ids, real in rows]


def _seeds(ids: torch.Tensor, valid: torch.Tensor, given: Sequence[int] | None) -> Sequence[int]:
    return sample_seeds(ids, valid) if given is None else for_each_row(given, len(ids), "sample_seeds")


def for_each_row(given: Sequence[Any], rows: int, name: str) -> list[Any]:
    """What was given once per prompt, for all its beams. ConfigError for another number of prompts."""
    beams, rest = divmod(rows, len(given) or rows + 1)
    if rest or not beams:
        raise ConfigError(f"{len(given)} {name} for {rows} sequences; accepted: one each.")
    return [one for one in given for _ in range(beams)]


def check_continuation(adapter: Adapter, given: Mapping[str, Any], own_cache: Any) -> None:
    """A later call goes on with the cache of the prompt read last, and brings no image."""
    if given.get("past_key_values") is not own_cache:
        raise UnsupportedError("this KV cache is not of the prompt read last; read its prompt inside this block first.")
    ids = given.get("input_ids")
    pixels = any(given.get(name) is not None for name in PIXELS)
    new_image = pixels or bool(given.get("mm_encoder_outputs"))  # an empty dict, where no image came
    if new_image and ids is not None and adapter.visual_tokens(ids).any():
        raise UnsupportedError("an image came after the prompt was read; give all images in the first prompt.")
