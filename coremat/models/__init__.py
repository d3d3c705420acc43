"""Model families: one adapter each, in a file named after Hugging Face's `model_type`."""

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
from coremat.models.video_llava import VideoLlavaAdapter

ADAPTERS: dict[str, type[Adapter]] = {
    "gemma3": Gemma3Adapter,
    "idefics3": Idefics3Adapter,
    "internvl": InternVLAdapter,
    "llava": LlavaAdapter,
    "llava_next": LlavaNextAdapter,
    "llava_onevision": LlavaOnevisionAdapter,
    "mllama": MllamaAdapter,
    "qwen2_5_vl": Qwen25VLAdapter,
    "qwen2_vl": Qwen2VLAdapter,
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
