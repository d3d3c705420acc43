"""The file of a calibration: what comes back, and everything that is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from calibrations import calibrated
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_llava

from coremat.errors import ConfigError, OutputError, UnsupportedError
from coremat.methods.calibration_file import Calibration
from coremat.methods.cats import Cats
from coremat.methods.predictor import TrainedPredictor
from coremat.methods.registry import parse, with_options
from coremat.runtime.support import given_and_skipped, why_unsupported


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(shutil.copy(str(calibrated("cats:beta=0.5").calibration), tmp_path / "cats.safetensors"))


def of(file: Path) -> Cats:
    return Cats(calibration=str(file))


def rewritten(file: Path, change) -> Path:
    """The same file after a change of its description or tensors, by hand."""
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["coremat"])
    tensors = load_file(file)
    change(about, tensors)
    save_file(tensors, file, metadata={"coremat": json.dumps(about)})
    return file


def test_what_was_written_comes_back(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(2).to(torch.bfloat16), "c": torch.tensor(1.5)}
    Calibration(tensors, {"method": "mine", "data": [{"task": "shapes"}]}).write(tmp_path / "new" / "one.safetensors")
    found = Calibration.read(tmp_path / "new" / "one.safetensors")
    assert found.about["method"] == "mine"
    assert found.about["data"] == [{"task": "shapes"}]
    assert set(found.tensors) == set(tensors)
    assert all(torch.equal(found.tensors[name], value) for name, value in tensors.items())


def test_a_calibration_says_what_it_was_made_of(file):
    about = Calibration.read(file).about
    assert (about["method"], about["options"], about["sizes"]) == ("cats", {}, {"layers": 6, "hidden": 64, "ffn": 160})
    assert (about["prompts"], about["new_tokens"], about["seed"]) == (5, 12, 0)
    assert about["tokens"] == 5 * 11
    assert about["held_out_tokens"] == 11


def test_it_is_accepted_whatever_the_width_of_the_weights(file):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert of(file).setup(tiny_llava(dtype=dtype))["thresholds"].shape == (6, 1000)


def test_none_is_refused_with_the_command_that_makes_one(model):
    with pytest.raises(UnsupportedError, match=r"cats needs a calibration .*coremat calibrate cats --model"):
        Cats().setup(model)


def test_methods_without_one_are_skipped_with_the_reason(model):
    methods = {name: parse(name) for name in ("dense", "cats", "fastv:tokens=5+predictor")}
    given, skipped = given_and_skipped(model, methods)
    assert list(given) == ["dense"]
    assert "coremat calibrate cats" in skipped["cats"]
    assert "coremat calibrate predictor" in skipped["fastv:tokens=5+predictor"]
    assert "coremat calibrate cats" in str(why_unsupported(model, methods["cats"]))


def refused(file: Path, model, method=None) -> str:
    with pytest.raises(ConfigError) as error:
        (method or of(file)).setup(model)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_file_is_refused(model, tmp_path):
    assert "/none'; accepted: what coremat calibrate made" in refused(tmp_path / "none", model)
    with pytest.raises(ConfigError, match="there is no file"):
        of(tmp_path / "none").identity()


@pytest.mark.parametrize("size", [0, 4, 300, -1])
def test_a_truncated_file_is_refused(model, file, size):
    file.write_bytes(file.read_bytes()[:size])
    assert "is broken" in refused(file, model)


def test_a_changed_byte_is_refused(model, file):
    content = bytearray(file.read_bytes())
    content[-7] ^= 64
    file.write_bytes(content)
    assert "its values are not those that were written" in refused(file, model)


def test_other_safetensors_and_other_formats_are_refused(model, file, tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    assert "holds no calibration of format 1" in refused(tmp_path / "weights.safetensors", model)
    rewritten(file, lambda about, tensors: about.update(format=2))
    assert "holds no calibration of format 1" in refused(file, model)


def test_the_calibration_of_another_method_is_refused(model, file):
    said = refused(file, model, TrainedPredictor(calibration=str(file)))
    assert said.endswith("is a calibration of cats; accepted: one of predictor.")


def test_one_for_other_sizes_is_refused(file):
    said = refused(file, tiny_llava(intermediate_size=96))
    assert "was made for layers=6, hidden=64, ffn=160, and this model has layers=6, hidden=64, ffn=96" in said


def test_one_on_other_weights_is_refused(file):
    other = tiny_llava()
    with torch.no_grad():
        other.get_decoder().layers[3].mlp.up_proj.weight += 0.5
    assert "was made on other weights" in refused(file, other)


def test_tensors_of_another_shape_are_refused(model, file):
    rewritten(file, lambda about, tensors: tensors.update(thresholds=tensors["thresholds"][:2].contiguous()))
    assert "its values are not those that were written" in refused(file, model)


def test_a_file_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        Calibration({"a": torch.ones(1)}, {}).write(tmp_path / "file" / "in a file")


def test_a_method_goes_by_the_content_of_its_calibration(file, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copy(file, tmp_path / "elsewhere" / file.name))
    assert of(moved).identity() == of(file).identity()
    assert of(file).identity()["options"] == {"calibration": "cats.safetensors", "layer_shares": "even", "beta": 0.5}
    before = of(file).identity()
    rewritten(file, lambda about, tensors: about.update(seed=1))
    assert of(file).identity()["calibration"]["sha256"] != before["calibration"]["sha256"]
    assert with_options(of(file), beta=0.2).identity()["options"]["beta"] == 0.2
