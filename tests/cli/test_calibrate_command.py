"""`coremat calibrate`: the file, what is printed, the run with it, and one sentence for bad input."""

import json
from pathlib import Path

import pytest
from PIL import Image
from said import Run, refused

from coremat.methods.calibration_file import Calibration
from coremat.tasks.bundled.shapes.generator import make_questions, make_scene


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Scenes and questions of a split of their own."""
    rows = []
    for number in range(8):
        scene = make_scene((11, number), least=3)
        Image.fromarray(scene.pixels).save(tmp_path / f"{number}.png")
        asked = [one for one in make_questions(scene, (11, number, 1), 8) if one.kind == "listing"]
        rows.append({"question": asked[0].question if asked else "list all objects", "image": f"{number}.png"})
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_file_of_prompts_becomes_a_calibration_that_a_run_takes(run: Run, prompts: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "cats.safetensors"
    code, out, err = run("calibrate", "cats:beta=0.3", "--prompts", prompts, "--output", file)
    assert code == 0, err
    assert "share reached" in out
    assert f"cats:beta=0.3:calibration={file}" in err.replace("\n", "")
    about = Calibration.read(file).about
    assert (about["method"], about["model"], about["prompts"]) == ("cats", "shapes-llava", 8)
    assert about["command"].startswith("coremat calibrate cats:beta=0.3 --prompts ")
    assert about["data"] == [{"prompts": "prompts.jsonl", "count": 8}]
    assert len(about["data_sha256"]) == 64
    method = f"cats:beta=0.3:calibration={file}"
    code, out, err = run("run", tmp_path / "0.png", "list all objects", "--method", method)
    assert code == 0, err
    assert "105 of 352 neurons per layer kept" in err


def test_a_task_gives_its_own_split_and_the_predictor_its_recall(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "predictor.safetensors"
    options = ("--tasks", "shapes", "--limit", 24, "--batch-size", 8, "--output", file)
    code, out, err = run("calibrate", "predictor:rank=8", *options)
    assert code == 0, err
    assert "recall of the most frequent" in out
    found = Calibration.read(file)
    assert found.about["data"] == [{"task": "shapes", "split": "validation", "scored_on": False, "count": 24}]
    assert found.about["options"] == {"beta": 0.4, "rank": 8, "fit_seed": 0}
    assert found.tensors["recall"].shape == (6,)


def test_bad_input_is_one_sentence(run: Run, prompts: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.safetensors"
    to = ("--output", file)
    assert "accepted: one of them" in refused(run("calibrate", "cats", *to))
    assert "accepted: one of them" in refused(run("calibrate", "cats", "--prompts", prompts, "--tasks", "shapes", *to))
    assert "fastv takes no calibration" in refused(run("calibrate", "fastv", "--prompts", prompts, *to))
    assert "has a calibration already" in refused(
        run("calibrate", f"cats:calibration={file}", "--prompts", prompts, *to)
    )
    assert "unknown method 'cat'" in refused(run("calibrate", "cat", "--prompts", prompts, *to))
    assert "cannot write" in refused(run("calibrate", "cats", "--prompts", prompts, "--output", tmp_path))
    assert "at least 4 prompts" in refused(run("calibrate", "cats", "--prompts", prompts, "--new-tokens", 2, *to))
    assert not file.exists()


def test_an_uncalibrated_method_says_what_to_do(run: Run, prompts: Path) -> None:
    picture = prompts.parent / "0.png"
    assert "coremat calibrate cats --model" in refused(run("run", picture, "how many?", "--method", "cats"))
    code, out, _ = run("list", "methods", "teal")
    assert code == 0
    assert "needs: a calibration (coremat calibrate)" in out
    assert "calibration" in out


def test_costs_of_layers_become_budgets_that_a_run_takes(run: Run, prompts: Path, tmp_path: Path) -> None:
    file = tmp_path / "costs.safetensors"
    options = ("--layer-shares", "--shares", "0.3,0.6", "--prompts", prompts, "--output", file)
    code, out, err = run("calibrate", "core-neurons:beta=0.5", *options)
    assert code == 0, err
    assert "core-neurons:beta=0.5 by layer" in out
    assert "KL at 0.3" in out
    assert "in the mean 0.5" in out.replace("\n", " ")
    assert f"core-neurons:beta=0.5:layer_shares={file}" in err.replace("\n", "")
    found = Calibration.read(file)
    assert (found.about["method"], found.about["prompts"]) == ("the layers of core-neurons", 8)
    assert found.about["data"] == [{"prompts": "prompts.jsonl", "count": 8}]
    assert found.tensors["costs"].shape == (6, 2)
    method = f"core-neurons:beta=0.5:layer_shares={file}"
    code, out, err = run("run", tmp_path / "0.png", "list all objects", "--method", method)
    assert code == 0, err
    kept = next(line for line in err.splitlines() if "neurons per layer kept" in line)
    assert any(f"{count} of 352 neurons" in kept for count in (174, 175, 176))


def test_bad_input_about_layers_is_one_sentence(run: Run, prompts: Path, tmp_path: Path) -> None:
    to = ("--layer-shares", "--prompts", prompts, "--output", tmp_path / "out.safetensors")
    assert "fastv has no layer_shares" in refused(run("calibrate", "fastv", *to))
    assert "has a layer_shares already; accepted: griffin without" in refused(
        run("calibrate", "griffin:layer_shares=first-dense", *to)
    )
    assert "'0.2;0.4'; accepted: numbers" in refused(run("calibrate", "griffin", "--shares", "0.2;0.4", *to))
    assert "the shares are 0.4, 0.2; accepted" in refused(run("calibrate", "griffin", "--shares", "0.4,0.2", *to))
    assert "cats needs a calibration" in refused(run("calibrate", "cats", *to))
    picture = prompts.parent / "0.png"
    assert "there is no file 'evn'; accepted: even, first-dense" in refused(
        run("run", picture, "how many?", "--method", "griffin:layer_shares=evn")
    )
    assert "0.1 in the mean of 6 layers leaves nothing" in refused(
        run("run", picture, "how many?", "--method", "griffin:beta=0.1:layer_shares=first-dense")
    )
    assert not (tmp_path / "out.safetensors").exists()
    code, out, _ = run("list", "methods", "griffin")
    assert code == 0
    assert "layer_shares" in out
