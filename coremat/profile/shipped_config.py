"""The configs of known models, shipped with coremat: their architecture at its real size with nothing to download."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from coremat.errors import UnknownNameError
from coremat.loading import BUNDLED, bundled_folder, read_config


def shipped_config(name: str) -> Any:
    """The Hugging Face config of a known model, a new one at each call. UnknownNameError for another name."""
    from transformers import AutoConfig

    paths = _paths()
    if name not in paths:
        raise UnknownNameError("model with a shipped config", name, paths)
    return AutoConfig.for_model(**json.loads(paths[name].read_text(encoding="utf-8")))


def config_of(name_or_path: str) -> Any:
    """The config of a model as users name it: shipped, in a folder, or on a hub. ModelError or UnsupportedError."""
    return shipped_config(name_or_path) if name_or_path in _paths() else read_config(name_or_path)


def _paths() -> dict[str, Path]:
    folder = Path(str(resources.files("coremat.models"))) / "configs"
    return {BUNDLED: bundled_folder() / "config.json"} | {path.stem: path for path in sorted(folder.glob("*.json"))}
