"""From a name or a folder to a model; and that the bundled model is what its card says."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from coremat.errors import ConfigError, ModelError, UnknownNameError
from coremat.models.families import adapter_for
from coremat.models.known import BUNDLED, bundled_folder
from coremat.models.load import LoadedModel, load, pick_device
from coremat.tasks.train_shapes_llava.architecture import CHAT_TEMPLATE, PRUNE_LAYER


@pytest.fixture(scope="module")
def bundled() -> LoadedModel:
    return load(BUNDLED)


def test_the_bundled_model_loads_with_plain_transformers() -> None:
    model = AutoModelForImageTextToText.from_pretrained(bundled_folder())
    processor = AutoProcessor.from_pretrained(bundled_folder())
    assert type(model) is LlavaForConditionalGeneration
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], add_generation_prompt=True)
    assert text == "<s>USER: <image> ASSISTANT:"
    assert processor.tokenizer.chat_template == CHAT_TEMPLATE


def test_the_bundled_model_is_as_small_and_as_deep_as_promised(bundled: LoadedModel) -> None:
    path = bundled_folder() / "model.safetensors"
    assert path.stat().st_size < 8_000_000
    assert {weight.dtype for weight in load_file(path).values()} == {torch.bfloat16}
    adapter = adapter_for(bundled.model)
    assert adapter.image_tokens == 144
    assert len(adapter.layers) == 6


def test_a_models_own_prune_layer_comes_from_its_config(bundled: LoadedModel) -> None:
    assert bundled.prune_layer == PRUNE_LAYER


def test_the_fingerprint_follows_the_weights(bundled: LoadedModel, tmp_path: Path) -> None:
    assert load(str(bundled_folder())).fingerprint == bundled.fingerprint
    other = AutoModelForImageTextToText.from_pretrained(bundled_folder())
    with torch.no_grad():
        other.lm_head.weight.mul_(1.01)
    other.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(bundled_folder()).save_pretrained(tmp_path)
    assert load(str(tmp_path)).fingerprint != bundled.fingerprint


def test_prompts_are_padded_on_the_left(bundled: LoadedModel) -> None:
    assert bundled.processor.tokenizer.padding_side == "left"


@pytest.mark.parametrize(
    ("name", "error"), [("shapes-lava", UnknownNameError), ("./nowhere", ModelError), ("a/b/c", ModelError)]
)
def test_a_model_that_is_not_there_is_named(name: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        load(name)


@pytest.mark.parametrize("device", ["tpu", "cpu:1", "cuda:x", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        pick_device(device)
