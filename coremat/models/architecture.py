"""The architecture of a model by its Hugging Face config, with nothing to download and no weight made."""

import copy
import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from coremat.errors import ConfigError, UnknownNameError
from coremat.models.families import takes_images
from coremat.models.known import KNOWN_MODELS


def shipped_config(name: str) -> Any:
    """The Hugging Face config of a known model, a new one at each call. UnknownNameError for another name."""
    from transformers import AutoConfig

    if name not in KNOWN_MODELS:
        raise UnknownNameError("model with a shipped config", name, KNOWN_MODELS)
    return AutoConfig.for_model(**json.loads(KNOWN_MODELS[name].config_path.read_text(encoding="utf-8")))


def auto_class(config: Any) -> Any:
    """The class of transformers that makes or loads a model with this config, with its output head."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if takes_images(config) else AutoModelForCausalLM


def bare_model(config: Any, device: str | torch.device, dtype: torch.dtype | None = None) -> Any:
    """The config's model, its weights whatever memory holds; on the device "meta" it has none and takes no time."""
    with no_initialisation(), torch.device(device):
        model = auto_class(config).from_config(copy.deepcopy(config), dtype=dtype)
    model.tie_weights()
    return model


def with_layers(config: Any, layers: int | None) -> Any:
    """A copy of the config, with that many decoder layers. ConfigError for more than there are."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    every = text.num_hidden_layers
    if layers is not None and not 1 <= layers <= every:
        raise ConfigError(f"layers is {layers!r}; accepted: 1 to {every}.")
    text.num_hidden_layers = layers or every
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    if hasattr(text, "cross_attention_layers"):
        text.cross_attention_layers = [n for n in text.cross_attention_layers if n < text.num_hidden_layers]
    return config


def no_initialisation() -> AbstractContextManager[None]:
    """Constructors leave weights as memory happens to be, and compute buffers (rotary frequencies) as ever."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # slower, and no less right: every weight is set below
        return nullcontext()
    return no_init_weights()
