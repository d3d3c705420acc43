"""The real architecture with random weights, and random prompts for it: what a measurement of speed needs.

Speed does not depend on what the weights say, as long as activations stay finite and tokens differ. Each matrix has the
spread 1 / sqrt(inputs), so that unit inputs give unit outputs and the residual stream grows with the square root of the
depth; embeddings have spread 1, norms are 1 and biases 0. One block of normal numbers is laid again and again over
every weight: drawing seven billion would take minutes. Its length is a prime, so no two rows of a matrix are equal.
"""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from coremat.errors import ConfigError
from coremat.profile.model_size import ModelSize

BLOCK = 1_048_583


def random_model(
    config: Any,
    layers: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Any:
    """The config's model with its first `layers` decoder layers (all, if left out), ready to generate without end."""
    from transformers import AutoModelForImageTextToText

    with _no_initialisation(), torch.device(device):
        model = AutoModelForImageTextToText.from_config(with_layers(config, layers), dtype=dtype)
    model.tie_weights()
    _fill(model, seed)
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def with_layers(config: Any, layers: int | None) -> Any:
    """A copy of the config, with that many decoder layers. ConfigError for more than there are."""
    config = copy.deepcopy(config)
    every = config.text_config.num_hidden_layers
    if layers is not None and not 1 <= layers <= every:
        raise ConfigError(f"layers is {layers!r}; accepted: 1 to {every}.")
    config.text_config.num_hidden_layers = layers or every
    return config


def _no_initialisation() -> AbstractContextManager[None]:
    """Constructors leave weights as memory happens to be, and compute buffers (rotary frequencies) as ever."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # slower, and no less right: every weight is set below
        return nullcontext()
    return no_init_weights()


@torch.no_grad()
def _fill(model: nn.Module, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    block = torch.randn(BLOCK, generator=draw).to(next(model.parameters()).device)
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.dim() == 1:
                weight.fill_(0.0 if name == "bias" else 1.0)
                continue
            spread = 1.0 if isinstance(module, nn.Embedding) else weight[0].numel() ** -0.5
            start = int(torch.randint(BLOCK, (), generator=draw))
            _lay(block.roll(start).mul_(spread).to(weight.dtype), weight.view(-1))


def _lay(block: torch.Tensor, over: torch.Tensor) -> None:
    whole = len(over) // len(block) * len(block)
    over[:whole].view(-1, len(block)).copy_(block)
    over[whole:].copy_(block[: len(over) - whole])


def random_prompt(
    config: Any,
    text_tokens: int,
    batch_size: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
) -> dict[str, torch.Tensor]:
    """Prompts of equal length: BOS, one image, and random text; `text_tokens` counts the BOS too."""
    for name, value in (("text_tokens", text_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name} is {value!r}; accepted: a whole number, at least 1.")
    draw = torch.Generator().manual_seed(seed)
    bos = torch.full((batch_size, 1), config.text_config.bos_token_id)
    image = torch.full((batch_size, ModelSize.of(config).image_tokens), config.image_token_index)
    text = _text_ids(config)
    words = text[torch.randint(len(text), (batch_size, text_tokens - 1), generator=draw)]
    ids = torch.cat((bos, image, words), dim=1)
    vision = config.vision_config
    picture = (batch_size, vision.num_channels, vision.image_size, vision.image_size)
    pixels = torch.randn(picture, generator=draw)
    return {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids).to(device),
        "pixel_values": pixels.to(device, dtype),
    }


def _text_ids(config: Any) -> torch.Tensor:
    """Every id of the vocabulary that has no meaning of its own."""
    text = config.text_config
    special = {config.image_token_index, text.bos_token_id, text.eos_token_id}
    special |= {getattr(config, "pad_token_id", None), text.pad_token_id}
    return torch.tensor([token for token in range(text.vocab_size) if token not in special])
