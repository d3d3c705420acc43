"""CLIP's text tower beside a model whose vision tower is CLIP's: how patches and a question are laid side by side.

A model keeps the vision tower alone; the text tower and both projections come from the whole CLIP, in a folder or in
the local Hugging Face cache. Nothing is downloaded. Computed in float32, whatever the model computes in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from coremat.errors import ConfigError, MissingError, UnsupportedError, first_sentence


class TowerSize(NamedTuple):
    """What tells vision towers apart."""

    hidden_size: int
    num_hidden_layers: int
    image_size: int
    patch_size: int

    def __str__(self) -> str:
        hidden, layers, image, patch = self
        return f"{layers} layers of {hidden}, patches of {patch} in {image} pixels"


PUBLISHED = {
    TowerSize(1024, 24, 336, 14): "openai/clip-vit-large-patch14-336",
    TowerSize(1024, 24, 224, 14): "openai/clip-vit-large-patch14",
    TowerSize(768, 12, 224, 16): "openai/clip-vit-base-patch16",
    TowerSize(768, 12, 224, 32): "openai/clip-vit-base-patch32",
}


@dataclass(frozen=True, eq=False)
class TextTower:
    """clip: a `CLIPModel`, of whose vision part only what follows the layers is there."""

    clip: Any
    tokenizer: Any

    @torch.no_grad()
    def patches(self, features: torch.Tensor) -> torch.Tensor:
        """float32 [N, P]: patch features of the tower's layers, [N, C], in the space of texts."""
        normed = self.clip.vision_model.post_layernorm(features.float())
        return self.clip.visual_projection(normed)

    @torch.no_grad()
    def text(self, text: str) -> torch.Tensor:
        """float32 [segments, P]: a text in pieces as long as the tower takes, each between start and end."""
        tokenizer, most = self.tokenizer, self.clip.config.text_config.max_position_embeddings - 2
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        pieces = [ids[start : start + most] for start in range(0, len(ids), most)] or [[]]
        return torch.cat([self._piece([tokenizer.bos_token_id, *piece, tokenizer.eos_token_id]) for piece in pieces])

    def _piece(self, ids: list[int]) -> torch.Tensor:
        given = torch.tensor([ids], device=self.clip.device)
        return self.clip.text_projection(self.clip.text_model(given).pooler_output)


def text_tower(model: Any, source: str | None) -> TextTower | None:
    """The tower for this model, on its device; None for a model without weights.

    source: a folder or a hub id; None for the published CLIP whose vision tower has the size of the model's.
    UnsupportedError for a model with another vision tower, MissingError where the published one is not on this machine,
    ConfigError for a source that is no CLIP on this machine.
    """
    own = _size_of_tower(model)
    if source is None and own not in PUBLISHED:
        raise UnsupportedError(
            f"the vision tower of {type(model).__name__} ({own}) is no published CLIP's, so that its text tower is not "
            "known; accepted: text_tower=FOLDER."
        )
    place = source or PUBLISHED[own]
    config = _config(place, source is not None)
    found = _size(config.vision_config)
    if found != own:
        raise UnsupportedError(
            f"text_tower is {place!r}, whose vision tower has {found}, and that of {type(model).__name__} has {own}; "
            "accepted: the CLIP that the vision tower was taken from."
        )
    return None if model.device.type == "meta" else _loaded(place, config, model.device)


def _size_of_tower(model: Any) -> TowerSize:
    vision = getattr(model.config, "vision_config", None)
    kind = getattr(vision, "model_type", "none")
    if kind != "clip_vision_model":
        raise UnsupportedError(
            f"the vision tower of {type(model).__name__} is {kind!r}, for which there is no text tower; "
            "accepted: 'clip_vision_model'."
        )
    return _size(vision)


def _size(vision: Any) -> TowerSize:
    return TowerSize(*(getattr(vision, name) for name in TowerSize._fields))


def _config(place: str, typed: bool) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        kind = ConfigError if typed else MissingError
        raise kind(
            f"the text tower {place!r} is neither a folder with a CLIP nor in the local Hugging Face cache; accepted: "
            "text_tower=FOLDER, or a hub id after `hf download`."
        ) from error
    if config.model_type != "clip":
        raise ConfigError(f"text_tower is {place!r}, a {config.model_type}; accepted: a CLIP, text tower included.")
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Weights that are left out on purpose are no news."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _loaded(place: str, config: Any, device: torch.device) -> TextTower:
    """Without the vision tower's layers, which the model has."""
    from transformers import AutoTokenizer, CLIPModel

    config.vision_config.num_hidden_layers = 0
    options = {"local_files_only": True}
    try:
        with _quiet():
            clip, info = CLIPModel.from_pretrained(
                place, config=config, dtype=torch.float32, output_loading_info=True, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(f"text_tower {place!r} cannot be loaded: {first_sentence(error)}.") from error
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(f"text_tower {place!r} lacks {len(missing)} weights, the first is {missing[0]!r}.")
    return TextTower(clip.eval().to(device).requires_grad_(False), tokenizer)
