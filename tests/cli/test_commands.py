"""The commands as a user types them: what they print, what they write, and one sentence for bad input."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from said import Run, refused
from video_files import write_video
from video_model import FRAME, save_video_llava

import coremat
from coremat.cli.eval import BUNDLED_MODEL
from coremat.models.known import BUNDLED, bundled_folder
from coremat.results.record.bench import BenchRecord
from coremat.results.record.bench_rows import BenchRow
from coremat.results.record.eval import Record, Row
from coremat.tasks.bundled.shapes.generator import make_scene


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Image.fromarray(make_scene((7, 0)).pixels).save(path)
    return path


def test_eval_writes_a_record_and_prints_a_table(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, out, err = run(
        "eval", "--tasks", "shapes", "--methods", "dense,corematching", "--limit", 6, "--output", folder
    )
    assert code == 0, err
    record = json.loads((folder / "record.json").read_text())
    assert (record["rows"][0]["method"], record["rows"][0]["metric"]) == ("dense", "accuracy")
    assert {row["samples"] for row in record["rows"] if row["metric"] == "accuracy"} == {6}
    sparse = next(row for row in record["rows"] if row["method"] == "corematching")
    assert sparse["image_tokens"] == 144
    assert sparse["image_tokens_kept"] < 144
    assert sparse["neurons_kept"] == int(0.4 * sparse["neurons"])
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 12
    assert {"table.md", "table.csv", "table.tex"} <= {path.name for path in folder.iterdir()}
    assert "corematching" in out
    assert str(folder) in err.replace("\n", "")


def test_eval_takes_options_of_methods(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("eval", "--tasks", "shapes", "--methods", "core-tokens:tokens=9", "--limit", 4, "--output", folder)
    [row] = [r for r in json.loads((folder / "record.json").read_text())["rows"] if r["metric"] == "accuracy"]
    assert row["image_tokens_kept"] == 9


def test_run_answers_and_draws_what_was_kept(run: Run, picture: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "kept.png"
    code, out, err = run("run", picture, "how many objects are there?", "--overlay", overlay)
    assert code == 0
    assert out.strip()
    assert "of 144 image tokens" in err
    assert Image.open(overlay).size == (384, 384)
    assert "first token after " in err


def test_the_overlay_dims_the_dropped_tokens_only(run: Run, tmp_path: Path) -> None:
    white, overlay = tmp_path / "white.png", tmp_path / "kept.png"
    Image.new("RGB", (96, 96), "white").save(white)
    _, _, err = run("run", white, "is there a star?", "--method", "core-tokens:tokens=10", "--overlay", overlay)
    assert "10 of 144 image tokens" in err
    grey = Image.open(overlay).convert("L").resize((12, 12), Image.Resampling.NEAREST)
    assert sorted(grey.tobytes()).count(255) == 10


@pytest.mark.parametrize("what", ["models", "tasks", "methods"])
def test_list(run: Run, what: str) -> None:
    code, out, _ = run("list", what)
    assert code == 0
    assert {"models": "llava-1.5-7b", "tasks": "easyvqa", "methods": "corematching"}[what] in out


@pytest.mark.parametrize("number", range(1, 9))
def test_table_prints_each_table_of_the_paper(run: Run, number: int) -> None:
    code, out, _ = run("table", number, "--format", "csv")
    assert code == 0
    assert "paper" in out


def test_table_3_takes_a_bench_and_an_evaluation(run: Run, tmp_path: Path) -> None:
    step = {"decoder": "graph", "batch_size": 1, "layers": 2, "prompt_tokens": 610, "new_tokens": 64}
    row = BenchRow(method="dense", phase="decode", samples_ms=(10.0,), **step)
    BenchRecord("m", (row,), config={"weights": "random", "model_layers": 2}).write(tmp_path / "bench")
    Record("m", (Row(method="dense", task="gqa", metric="exact_match", score=50.0, samples=1),)).write(
        tmp_path / "eval"
    )
    both = ("--record", tmp_path / "bench", "--record", tmp_path / "eval", "--format", "csv")
    code, out, _ = run("table", 3, *both)
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("measured")] == ["measured,m,,dense,,,,,,,,,,,0.64"]
    code, out, _ = run("table", 2, *both)
    assert [line.split(",")[:3] for line in out.splitlines() if "measured" in line] == [["measured", "m", "dense"]]


def test_a_record_of_no_known_kind_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"schema": 1, "kind": "training"}))
    assert "kind 'training', and one of kind 'eval' or 'bench'" in refused(run("table", 3, "--record", tmp_path))


def test_the_default_model_is_the_bundled_one() -> None:
    assert BUNDLED_MODEL == BUNDLED


def test_version(run: Run) -> None:
    code, out, _ = run("--version")
    assert (code, out.strip()) == (0, coremat.__version__)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--model", "llava-1.5-7", "did you mean 'llava-1.5-7b'"),
        ("--tasks", "easyvqq", "did you mean 'easyvqa'"),
        ("--methods", "corematchin", "did you mean 'corematching'"),
        ("--methods", "corematching:bta=0.2", "did you mean 'beta'"),
        ("--methods", "corematching:beta=1.5", "beta is 1.5"),
        ("--methods", "corematching:prune_layer=6", "prunes after 6 decoder layers"),
        ("--methods", "core-neurons:tokens=9", "unknown option of core-neurons 'tokens'"),
        ("--limit", "-3", "--limit is '-3'"),
        ("--device", "tpu", "device is 'tpu'"),
        ("--dtype", "int3", "dtype is 'int3'"),
        ("--model", "./nowhere", "no model folder './nowhere'"),
    ],
)
def test_eval_refuses(run: Run, tmp_path: Path, option: str, value: str, said: str) -> None:
    folder = tmp_path / "run"
    assert said in refused(run("eval", option, value, "--output", folder))
    assert not folder.exists()


def copy_of_bundled(folder: Path) -> Path:
    return shutil.copytree(bundled_folder(), folder, ignore=shutil.ignore_patterns("__pycache__", "*.py"))


def test_a_folder_without_weights_is_refused(run: Run, tmp_path: Path, picture: Path) -> None:
    folder = copy_of_bundled(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert "cannot be loaded as a model" in refused(run("run", picture, "what?", "--model", folder))


def test_a_folder_with_a_vision_tower_only_is_refused(run: Run, tmp_path: Path, picture: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_of_bundled(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    tower = {name: weight for name, weight in weights.items() if "vision_tower" in name}
    assert 0 < len(tower) < len(weights)
    save_file(tower, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks" in refused(run("run", picture, "what?", "--model", folder))


def test_a_model_type_without_adapter_is_refused(run: Run, tmp_path: Path, picture: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "opt", "architectures": ["OPTForCausalLM"]}))
    assert "'opt'; supported are gemma3, " in refused(run("run", picture, "what?", "--model", folder))


def test_an_image_that_is_none_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("not an image")
    assert "is neither an image nor a video that can be read" in refused(run("run", path, "what?"))
    assert "there is no file" in refused(run("run", tmp_path / "gone.png", "what?"))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "video.mp4", [(255, 0, 0)] * 6 + [(0, 0, 255)] * 6)


def test_run_answers_about_a_video(run: Run, video: Path, tmp_path: Path) -> None:
    model = save_video_llava(tmp_path / "model")
    for options, tokens in (((), 8 * FRAME), (("--frames", 3), 3 * FRAME)):
        code, out, err = run("run", video, "what is it?", "--model", model, "--max-new-tokens", 4, *options)
        assert code == 0, err
        assert out.strip()
        assert f"of {tokens} image tokens" in err


def test_a_video_is_refused_where_it_cannot_be_shown(run: Run, video: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "kept.png"
    assert "--overlay draws on one square image" in refused(run("run", video, "what?", "--overlay", overlay))
    assert not overlay.exists()
    assert "shapes-llava takes no videos; families that do: internvl" in refused(run("run", video, "what?"))


def test_a_record_of_a_newer_schema_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(
        json.dumps({"schema": 4, "kind": "eval", "model": "m", "rows": [], "config": {}, "environment": {}})
    )
    assert "schema" in refused(run("table", 2, "--record", path))


def test_a_table_that_there_is_not_is_refused(run: Run) -> None:
    assert "'9'" in refused(run("table", 9))


def test_another_runs_folder_is_refused_and_kept(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("eval", "--tasks", "shapes", "--methods", "dense", "--limit", 2, "--output", folder)
    before = (folder / "record.json").read_bytes()
    refused(run("eval", "--tasks", "shapes", "--methods", "corematching", "--limit", 2, "--output", folder))
    assert (folder / "record.json").read_bytes() == before


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coremat.tasks.lmms_eval import model as lmms_model

    folder, calls, real = tmp_path / "run", [], lmms_model.answering

    @contextmanager
    def interrupted(*args: Any) -> Iterator[Callable]:
        def answer(*batch: Any) -> Any:
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(batch)
            return whole(*batch)

        with real(*args) as whole:
            yield answer

    command = ("eval", "--tasks", "shapes", "--methods", "dense", "--limit", 8, "--batch-size", 2, "--output", folder)
    monkeypatch.setattr(lmms_model, "answering", interrupted)
    code, _, err = run(*command)
    assert code == 130
    assert f"--output {folder}" in err.replace("\n", "")
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 4
    monkeypatch.setattr(lmms_model, "answering", real)
    code, _, _ = run(*command)
    assert code == 0
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 8


def test_one_budget_of_image_tokens_for_all_methods(run: Run, tmp_path: Path) -> None:
    methods = "dense,fastv,divprune+core-neurons,core-neurons,uniform-tokens:tokens=9,powerinfer"
    options = ("--tasks", "shapes", "--limit", 4, "--image-tokens", 12, "--methods", methods, "--output", tmp_path)
    code, out, err = run("eval", *options)
    assert code == 0, err
    record = Record.read(tmp_path)
    kept = {row.method: (row.image_tokens_kept, row.neurons_kept) for row in record.rows if row.metric == "accuracy"}
    assert kept == {
        "dense": (144, 352),
        "fastv": (12, 352),
        "divprune+core-neurons": (12, 140),
        "core-neurons": (144, 140),
        "uniform-tokens:tokens=9": (9, 352),
    }
    assert record.config["skipped"] == {"powerinfer": "timing only; coremat bench has it."}
    assert "powerinfer skipped: timing only" in out


def test_methods_of_a_model(run: Run) -> None:
    code, out, _ = run("list", "methods", "--model", "llama-3.2-11b-vision")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "yes" in lines["core-neurons"]
    assert "yes" not in lines["corematching"]


def test_the_reading_is_in_the_record(run: Run, tmp_path: Path) -> None:
    options = ("--tasks", "shapes", "--limit", 2, "--methods", "dense", "--square-images", "--output", tmp_path)
    code, _, err = run("eval", *options)
    assert code == 0, err
    assert Record.read(tmp_path).config["preprocessing"]["square"] is True


def test_a_task_that_needs_a_judge_says_so_before_a_model_is_loaded(run: Run) -> None:
    said = refused(run("eval", "--model", "no/model", "--tasks", "gqa,activitynet-qa"))
    assert said == "error: task activitynet-qa is graded by a judge: give --judge-url and --judge-model"
    said = refused(run("eval", "--model", "no/model", "--tasks", "msvd-qa"))
    assert "no/model" in said, "it has a score without one"
