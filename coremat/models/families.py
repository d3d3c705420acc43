"""Adapters by `model_type`, and the adapter of a model."""

from typing import Any

from coremat.errors import UnsupportedError
from coremat.models.adapter import Adapter
from coremat.models.gemma3 import Gemma3Adapter
from coremat.models.idefics3 import Idefics3Adapter
from coremat.models.internvl import InternVLAdapter
from coremat.models.llava import LlavaAdapter
from coremat.models.llava_next import LlavaNextAdapter
from coremat.models.llava_onevision import LlavaOnevisionAdapter
from coremat.models.mllama import MllamaAdapter
from coremat.models.qwen2_5_vl import Qwen25VLAdapter
from coremat.models.qwen2_vl import Qwen2VLAdapter
from coremat.models.qwen3_vl import Qwen3VLAdapter
from coremat.models.smolvlm import SmolVLMAdapter
from coremat.models.text import TextAdapter
from coremat.models.video_llava import VideoLlavaAdapter

ADAPTERS: dict[str, type[Adapter]] = {
    "gemma3": Gemma3Adapter,
    "gemma3_text": TextAdapter,
    "idefics3": Idefics3Adapter,
    "internvl": InternVLAdapter,
    "llama": TextAdapter,
    "llava": LlavaAdapter,
    "llava_next": LlavaNextAdapter,
    "llava_onevision": LlavaOnevisionAdapter,
    "mistral": TextAdapter,
    "mllama": MllamaAdapter,
    "qwen2": TextAdapter,
    "qwen2_5_vl": Qwen25VLAdapter,
    "qwen2_vl": Qwen2VLAdapter,
    "qwen3": TextAdapter,
    "qwen3_vl": Qwen3VLAdapter,
    "smolvlm": SmolVLMAdapter,
    "video_llava": VideoLlavaAdapter,
}


def adapter_for(model: Any) -> Adapter:
    """The adapter of this model's family; an unknown family is refused with the list of known ones."""
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if model_type not in ADAPTERS:
        raise UnsupportedError(
            f"model type {model_type!r} has no adapter; supported are {', '.join(sorted(ADAPTERS))}."
        )
    return ADAPTERS[model_type](model)


def takes_images(config: Any) -> bool:
    """Whether a model with this Hugging Face config looks at images, or reads text alone."""
    family = ADAPTERS.get(config.model_type)
    return family is None or family.takes_images


def check_takes_images(name: str, config: Any, otherwise: str) -> None:
    """UnsupportedError for a model of text alone, by the name that a user typed. otherwise: what is accepted."""
    if not takes_images(config):
        raise UnsupportedError(f"{name} ({config.model_type}) reads text alone; accepted: {otherwise}.")


def whole_model(model: Any) -> Any:
    """The Hugging Face model behind a PEFT wrapper. UnsupportedError for a compiled model, whose code was made for the
    dense one, and for a part of a model."""
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise UnsupportedError(
            f"the {type(model).__name__} is compiled by torch.compile, whose code was made for the dense model; "
            "accepted: the model before it is compiled."
        )
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(base, "generate") or base.get_output_embeddings() is None:
        raise UnsupportedError(f"{type(base).__name__} is a part of a model; accepted: the model with its output head.")
    return base
