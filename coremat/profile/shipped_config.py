"""The configs of known models, shipped with coremat: their architecture at its real size with nothing to download."""

import json
from typing import Any

from coremat.catalogue import KNOWN_MODELS
from coremat.errors import UnknownNameError
from coremat.loading import read_config


def shipped_config(name: str) -> Any:
    """The Hugging Face config of a known model, a new one at each call. UnknownNameError for another name."""
    from transformers import AutoConfig

    if name not in KNOWN_MODELS:
        raise UnknownNameError("model with a shipped config", name, KNOWN_MODELS)
    return AutoConfig.for_model(**json.loads(KNOWN_MODELS[name].config_path.read_text(encoding="utf-8")))


def config_of(name_or_path: str) -> Any:
    """The config of a model as users name it: shipped, in a folder, or on a hub. ModelError or UnsupportedError."""
    return shipped_config(name_or_path) if name_or_path in KNOWN_MODELS else read_config(name_or_path)
