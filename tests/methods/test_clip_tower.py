"""CLIP's text tower beside a model: its features are CLIP's own, and what is no fitting tower is one sentence."""

import json
from pathlib import Path

import pytest
import torch
from tiny_clip import END, LONGEST, START, save_tiny_clip
from transformers import CLIPModel

import coremat
from coremat.errors import ConfigError, MissingError, UnsupportedError
from coremat.methods.common.clip import PUBLISHED, TowerSize, text_tower
from coremat.methods.registry import parse
from coremat.models.architecture import bare_model, shipped_config
from coremat.runtime.support import given_and_skipped, method_support, summary
from coremat.testing.families import FAMILIES
from coremat.testing.families.llava import SIDE
from coremat.testing.invariants import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"), SIDE)


@pytest.fixture(scope="module")
def whole(folder):
    return CLIPModel.from_pretrained(folder).eval()


@pytest.fixture
def nothing_cached(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


def llava():
    return tiny(FAMILIES["llava"])


def test_a_text_has_the_features_that_clip_gives_it(folder, whole):
    tower = text_tower(llava(), folder)
    ids = torch.tensor([[START, 31, 7, END]])
    expected = whole.text_projection(whole.text_model(ids).pooler_output)
    torch.testing.assert_close(tower.text("31 7"), expected)


def test_a_long_text_is_cut_into_pieces(folder):
    tower, most = text_tower(llava(), folder), LONGEST - 2
    words = [str(number) for number in range(30, 30 + 2 * most + 1)]
    found = tower.text(" ".join(words))
    expected = [tower.text(" ".join(words[start : start + most])) for start in range(0, len(words), most)]
    torch.testing.assert_close(found, torch.cat(expected))
    assert len(found) == 3


def test_no_text_is_a_piece_of_nothing(folder, whole):
    expected = whole.text_projection(whole.text_model(torch.tensor([[START, END]])).pooler_output)
    torch.testing.assert_close(text_tower(llava(), folder).text(""), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_patches_are_normed_and_projected_as_clip_does_with_its_class_token(folder, whole, dtype):
    patches = torch.randn(5, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = whole.visual_projection(whole.vision_model.post_layernorm(patches.float()))
    torch.testing.assert_close(text_tower(llava(), folder).patches(patches), expected)


def test_the_towers_layers_are_not_loaded_twice(folder):
    clip = text_tower(llava(), folder).clip
    assert len(clip.vision_model.encoder.layers) == 0
    assert len(clip.text_model.encoder.layers) == 2


def test_a_model_without_weights_loads_none(folder):
    shell = bare_model(llava().config, "meta")
    assert text_tower(shell, folder) is None


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-next"])
def test_the_published_tower_of_a_model_is_known(name, nothing_cached):
    shell = bare_model(shipped_config(name), "meta")
    with pytest.raises(MissingError, match=r"'openai/clip-vit-large-patch14-336' is neither a folder .* `hf download`"):
        text_tower(shell, None)
    assert TowerSize(1024, 24, 336, 14) in PUBLISHED


def test_what_a_model_gives_does_not_depend_on_what_is_cached(nothing_cached):
    assert method_support(shipped_config("llava-1.5-7b"))["trim"] is None
    support = method_support(shipped_config("shapes-llava"))
    assert summary(support) == "all but trim"
    assert "is no published CLIP's" in str(support["trim"])


@pytest.mark.parametrize("method", ["trim", "cdpruner"])
@pytest.mark.parametrize("place", ["./nowhere", "nobody/nothing", "/"])
def test_a_tower_that_is_not_there_is_one_sentence(method, place, nothing_cached):
    with pytest.raises(ConfigError, match=f"the text tower '{place}' is neither a folder with a CLIP nor in the local"):
        coremat.apply(llava(), parse(f"{method}:text_tower={place}")).__enter__()


@pytest.mark.parametrize("method", ["trim", "cdpruner"])
def test_another_tower_is_refused(method, tmp_path):
    folder = save_tiny_clip(tmp_path, SIDE, hidden_size=48)
    said = r"3 layers of 48, patches of 14 in 56 pixels, and that of Llava.* has 3 layers of 32"
    with pytest.raises(UnsupportedError, match=said):
        coremat.apply(llava(), parse(f"{method}:text_tower={folder}")).__enter__()


def test_a_model_that_is_no_clip_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="a bert; accepted: a CLIP, text tower included"):
        text_tower(llava(), str(tmp_path))


@pytest.mark.parametrize(("lost", "said"), [("model.safetensors", "cannot be loaded"), ("tokenizer.json", "cannot be")])
def test_a_folder_without_a_part_is_refused(tmp_path, lost, said):
    folder = save_tiny_clip(tmp_path, SIDE)
    (Path(folder) / lost).unlink()
    with pytest.raises(ConfigError, match=said):
        text_tower(llava(), folder)


def test_a_method_without_its_tower_is_skipped_where_others_can_run(folder):
    specs = ("dense", "trim", "cdpruner", f"trim:text_tower={folder}")
    given, skipped = given_and_skipped(llava(), {spec: parse(spec) for spec in specs})
    assert set(given) == {"dense", "cdpruner", f"trim:text_tower={folder}"}
    assert "its text tower is not known; accepted: text_tower=FOLDER" in skipped["trim"]


@pytest.mark.parametrize("method", ["trim", "cdpruner"])
def test_a_model_without_a_clip_is_refused(method, folder):
    with pytest.raises(UnsupportedError, match=r"no such tower|class token|there is no text tower"):
        coremat.apply(tiny(FAMILIES["gemma3"]), parse(f"{method}:text_tower={folder}")).__enter__()
