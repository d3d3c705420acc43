"""Model families: one adapter each, in a file named after Hugging Face's `model_type`."""

from typing import Any

from coremat.errors import UnsupportedError
from coremat.models.adapter import Adapter
from coremat.models.llava import LlavaAdapter

ADAPTERS: dict[str, type[Adapter]] = {"llava": LlavaAdapter}


def adapter_for(model: Any) -> Adapter:
    """The adapter of this model's family; an unknown family is refused with the list of known ones."""
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if model_type not in ADAPTERS:
        raise UnsupportedError(
            f"model type {model_type!r} has no adapter; supported are {', '.join(sorted(ADAPTERS))}."
        )
    return ADAPTERS[model_type](model)
