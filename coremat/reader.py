"""What a call brings: the prompts of a batch, read and checked, and the calls that sparse models cannot take.

Each refusal is one sentence, before anything runs where that can be known.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from coremat.config import SparsityConfig
from coremat.core_neurons import core_count
from coremat.errors import ConfigError, DataError, UnsupportedError
from coremat.models import Adapter
from coremat.prompt import Prompt
from coremat.selection import DRAWN, sample_seeds
from coremat.window import check_positions, check_window, tokens_to_come

NO_CACHE = "the model runs without a KV cache, with which the choice of tokens and neurons lives: leave use_cache on."
NOT_IN_ONE_PASS = ("prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_model")
NEW_IMAGES = ("pixel_values", "pixel_values_images", "pixel_values_videos", "mm_encoder_outputs")
MISMATCH = "do not match"  # of image features and image tokens, in transformers' words


def guarded(generate: Callable, adapter: Adapter, window: int | None) -> Callable:
    """`generate` that refuses ways of generating which do not read the prompt, and it alone, in one pass.

    window: the sliding window that prompt and answer have to fit into, None for no window.
    """
    positions = getattr(adapter.decoder.config, "max_position_embeddings", None)

    @functools.wraps(generate)
    def checked(*args: Any, **kwargs: Any) -> Any:
        config = kwargs.get("generation_config") or adapter.model.generation_config
        tokens = tokens_to_come(args[0] if args else None, kwargs, config)
        check_window(window, tokens)
        check_positions(positions, tokens)
        for name in NOT_IN_ONE_PASS:
            value = kwargs.get(name, getattr(config, name, None))
            if value is not None:
                raise UnsupportedError(f"{name} is given; accepted: leave it out, the prompt is read in one pass.")
        try:
            return generate(*args, **kwargs)
        except ValueError as error:
            if MISMATCH not in str(error):
                raise
            raise DataError(f"the images do not fit their places in the prompts: {error}") from error

    return checked


def read_prompt(adapter: Adapter, config: SparsityConfig, given: dict[str, Any], seeds: Sequence[int] | None) -> Prompt:
    """given: the arguments of the model's forward, by name; seeds: one per sequence, None to take them from the ids."""
    if given.get("use_cache") is False:
        raise UnsupportedError(NO_CACHE)
    ids, embeds, mask = (given.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask"))
    if ids is None and config.prunes_tokens:
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
    visual = torch.full_like(valid, -1, dtype=torch.int64) if ids is None else adapter.visual_index(ids)
    each = core_count(adapter.shape.ffn, config.beta) if config.neurons == "oracle" else None
    return Prompt(visual, valid, _seeds(config, like, valid, seeds), neurons_of_each_token=each)


def _seeds(config: SparsityConfig, ids: torch.Tensor, valid: torch.Tensor, given: Sequence[int] | None) -> list[int]:
    if config.token_score != "random" and config.neurons not in DRAWN:
        return []
    if given is None:
        return sample_seeds(ids, valid)
    beams, rest = divmod(len(ids), len(given) or len(ids) + 1)
    if rest or not beams:
        raise ConfigError(f"{len(given)} sample_seeds for {len(ids)} sequences; accepted: one each.")
    return [seed for seed in given for _ in range(beams)]


def check_continuation(adapter: Adapter, given: dict[str, Any], own_cache: Any) -> None:
    """A later call goes on with the cache of the prompt read last, and brings no image."""
    if given.get("past_key_values") is not own_cache:
        raise UnsupportedError("this KV cache is not of the prompt read last; read its prompt inside this block first.")
    ids = given.get("input_ids")
    new_image = any(given.get(name) is not None for name in NEW_IMAGES)
    if new_image and ids is not None and adapter.visual_tokens(ids).any():
        raise UnsupportedError("an image came after the prompt was read; give all images in the first prompt.")
