"""The real architecture with random weights, and random prompts for it: what a measurement of speed needs.

Speed does not depend on what the weights say, as long as activations stay finite and tokens differ. Each matrix has the
spread 1 / sqrt(inputs), so that unit inputs give unit outputs and the residual stream grows with the square root of the
depth; embeddings have spread 1, norms are 1 and biases 0. One block of normal numbers is laid again and again over
every weight: drawing seven billion would take minutes. Its length is a prime, so no two rows of a matrix are equal.
"""

from typing import Any

import torch
from torch import nn

from coremat.checks import whole_number
from coremat.models.architecture import bare_model, with_layers
from coremat.models.dummy_inputs import DummyImage, dummy_image

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
    """Prompts of equal length: BOS, one dummy image if the model takes any, and random text; `text_tokens` counts the
    BOS too, and a placeholder that is no image token."""
    dummy = dummy_image(config)
    places = dummy.places if dummy else 0
    least = 1 + (places - dummy.tokens if dummy else 0)
    whole_number("text_tokens", text_tokens, least)
    whole_number("batch_size", batch_size)
    draw = torch.Generator().manual_seed(seed)
    text = _text_ids(config)
    first = config.get_text_config().bos_token_id
    bos = torch.full((batch_size, 1), int(text[0]) if first is None else first)
    image = torch.full((batch_size, places), dummy.placeholder if dummy else 0)
    words = text[torch.randint(len(text), (batch_size, text_tokens - least), generator=draw)]
    ids = torch.cat((bos, image, words), dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if dummy is not None:
        inputs |= _beside(dummy, ids) | _pixels(dummy, batch_size, draw, dtype)
    return {key: value.to(device) for key, value in inputs.items()}


def _pixels(dummy: DummyImage, images: int, draw: torch.Generator, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    name, shape = dummy.pixels
    return {name: torch.randn((images * shape[0], *shape[1:]), generator=draw).to(dtype)}


def _beside(dummy: DummyImage, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs that say where and of what shape the images are."""
    found = {}
    for name, numbers in dummy.numbers.items():
        of_one = torch.tensor(numbers)
        found[name] = of_one.repeat(len(ids), *[1] * (of_one.dim() - 1))
    if dummy.mark is not None:
        found[dummy.mark] = (ids == dummy.placeholder).long()
    if dummy.cross_keys:
        behind = (ids == dummy.placeholder).cumsum(1)
        found["cross_attention_mask"] = behind[:, :, None, None].repeat(1, 1, 1, dummy.run.tiles)
    return found


def _text_ids(config: Any) -> torch.Tensor:
    """Every id of the vocabulary that has no meaning of its own."""
    special: set[int] = set()
    for part in (config, config.get_text_config()):
        for name, value in part.to_dict().items():
            if name.endswith(("_token_id", "_token_index")):
                special |= set(value) if isinstance(value, (list, tuple)) else {value}
    return torch.tensor([token for token in range(config.get_text_config().vocab_size) if token not in special])
