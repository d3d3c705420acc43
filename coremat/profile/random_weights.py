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
from coremat.profile.pictures import Picture, picture_of

BLOCK = 1_048_583


def random_model(
    config: Any,
    layers: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Any:
    """The config's model with its first `layers` decoder layers (all, if left out), ready to generate without end."""
    model = bare_model(with_layers(config, layers), device, dtype)
    _fill(model, seed)
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def bare_model(config: Any, device: str | torch.device, dtype: torch.dtype | None = None) -> Any:
    """The config's model, its weights whatever memory holds; on the device "meta" it has none and takes no time."""
    from transformers import AutoModelForImageTextToText

    with _no_initialisation(), torch.device(device):
        model = AutoModelForImageTextToText.from_config(copy.deepcopy(config), dtype=dtype)
    model.tie_weights()
    return model


def with_layers(config: Any, layers: int | None) -> Any:
    """A copy of the config, with that many decoder layers. ConfigError for more than there are."""
    config = copy.deepcopy(config)
    text = config.text_config
    every = text.num_hidden_layers
    if layers is not None and not 1 <= layers <= every:
        raise ConfigError(f"layers is {layers!r}; accepted: 1 to {every}.")
    text.num_hidden_layers = layers or every
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    if hasattr(text, "cross_attention_layers"):
        text.cross_attention_layers = [n for n in text.cross_attention_layers if n < text.num_hidden_layers]
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
    """Prompts of equal length: BOS, one picture, and random text; `text_tokens` counts the BOS too, and a placeholder
    that is no image token."""
    picture = picture_of(config)
    least = 1 + picture.places - picture.tokens
    for name, value, fewest in (("text_tokens", text_tokens, least), ("batch_size", batch_size, 1)):
        if value < fewest:
            raise ConfigError(f"{name} is {value!r}; accepted: a whole number, at least {fewest}.")
    draw = torch.Generator().manual_seed(seed)
    text = _text_ids(config)
    first = config.text_config.bos_token_id
    bos = torch.full((batch_size, 1), int(text[0]) if first is None else first)
    image = torch.full((batch_size, picture.places), picture.placeholder)
    words = text[torch.randint(len(text), (batch_size, text_tokens - least), generator=draw)]
    ids = torch.cat((bos, image, words), dim=1)
    name, shape = picture.pixels
    pixels = torch.randn((batch_size * shape[0], *shape[1:]), generator=draw)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | _beside(picture, ids)
    return {key: value.to(device) for key, value in inputs.items()} | {name: pixels.to(device, dtype)}


def _beside(picture: Picture, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs that say where and of what shape the pictures are."""
    found = {}
    for name, numbers in picture.numbers.items():
        of_one = torch.tensor(numbers)
        found[name] = of_one.repeat(len(ids), *[1] * (of_one.dim() - 1))
    if picture.mark is not None:
        found[picture.mark] = (ids == picture.placeholder).long()
    if picture.cross_keys:
        behind = (ids == picture.placeholder).cumsum(1)
        found["cross_attention_mask"] = behind[:, :, None, None].repeat(1, 1, 1, picture.run.tiles)
    return found


def _text_ids(config: Any) -> torch.Tensor:
    """Every id of the vocabulary that has no meaning of its own."""
    special: set[int] = set()
    for part in (config, config.text_config):
        for name, value in part.to_dict().items():
            if name.endswith(("_token_id", "_token_index")):
                special |= set(value) if isinstance(value, (list, tuple)) else {value}
    return torch.tensor([token for token in range(config.text_config.vocab_size) if token not in special])
