"""`coremat run --text`, and what the commands say where a model of text alone meets images, or the other way round."""

from pathlib import Path

import pytest
from PIL import Image
from said import Run, refused
from text_model import save_text_model

from coremat.results.record.bench import BenchRecord

LLAMA_REFUSAL = "LlamaForCausalLM has no image tokens; accepted: methods of neurons alone, dense"
ALONE = "reads text alone; accepted: "


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_text_model(tmp_path / "model")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "grey.png"
    Image.new("RGB", (32, 32), (90, 90, 90)).save(path)
    return path


def test_a_question_of_text_is_answered(run: Run, model: Path) -> None:
    question = ("run", "--text", "one two three", "--model", model, "--max-new-tokens", 4)
    code, out, err = run(*question)
    assert code == 0, err
    assert out.strip()
    assert "core-neurons: 64 of 160 neurons per layer kept" in err.replace("\n", " ")
    assert "after 6 prompt tokens" in err.replace("\n", " ")
    assert "image" not in err
    code, _, err = run(*question, "--method", "dense")
    assert "dense: 160 of 160 neurons" in err.replace("\n", " ")
    assert LLAMA_REFUSAL in refused(run(*question, "--method", "fastv"))


def test_a_picture_is_refused_before_weights_are_read(run: Run, picture: Path, model: Path) -> None:
    (model / "model.safetensors").unlink()
    accepted = "--text with a question, or a vision-language model"
    assert f"(llama) {ALONE}{accepted}" in refused(run("run", picture, "what?", "--model", model))
    said = refused(run("run", picture, "what?", "--model", "llama-3.2-1b"))
    assert f"llama-3.2-1b (llama) {ALONE}{accepted}" in said


def test_a_text_is_refused_where_an_image_is_asked_about(run: Run) -> None:
    said = refused(run("run", "--text", "how many objects are there?"))
    assert "shapes-llava (llava) is a vision-language model, and --text shows it nothing; accepted: FILE and" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "FILE and QUESTION are missing; accepted: FILE and QUESTION, or --text alone"),
        (("a.png",), "QUESTION is missing; accepted: FILE and QUESTION, or --text alone"),
        (("a.png", "what?", "--text", "what?"), "--text is given beside 'a.png'; accepted: FILE and QUESTION, or"),
        (("--text", " "), "--text is ' '; accepted: a question"),
        (("--text", "what?", "--overlay", "kept.png"), "--overlay is given beside --text; accepted: with an image"),
    ],
)
def test_one_way_of_asking(run: Run, options: tuple[str, ...], said: str) -> None:
    assert said in refused(run("run", *options))


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_tasks_are_not_asked_of_a_text_model(run: Run, more: tuple[str, ...]) -> None:
    said = refused(run("eval", "--model", "qwen2.5-0.5b", "--tasks", "shapes", *more))
    assert said.startswith(
        f"error: qwen2.5-0.5b (qwen2) {ALONE}a vision-language model, for the tasks ask about images"
    )


def test_a_bench_skips_what_there_is_not(run: Run, model: Path, tmp_path: Path) -> None:
    """The command's own methods, with as few layers as the first of them would leave untouched."""
    folder = tmp_path / "bench"
    sizes = ("--layers", 2, "--text-tokens", 8, "--new-tokens", 2, "--repeats", 1, "--dtype", "float32")
    code, out, err = run("bench", "--model", model, "--device", "cpu", *sizes, "--output", folder)
    assert code == 0, err
    record = BenchRecord.read(folder)
    assert {row.method for row in record.rows} == {"dense", "core-neurons"}
    assert {row.phase for row in record.rows} - {"gathering"} == {"prefill", "selection", "decode", "end-to-end"}
    assert {row.prompt_tokens for row in record.rows} == {8}
    assert set(record.config["skipped"].values()) == {f"{LLAMA_REFUSAL}."}
    assert all(row.flops_counted in (None, row.flops) for row in record.rows)
    assert "from the image" not in out
    assert "image tokens kept of" not in out
    assert "from the prompt to the last of 2 new tokens" in " ".join(out.split())


def test_a_bench_of_a_text_model_is_projected(run: Run, tmp_path: Path) -> None:
    options = ("--device", "titanxp", "--methods", "core-neurons,griffin", "--output", tmp_path)
    code, _, err = run("bench", "--model", "gemma-3-1b", *options)
    assert code == 0, err
    assert {row.phase for row in BenchRecord.read(tmp_path).rows} == {"prefill", "decode", "end-to-end"}


def test_names_are_listed_without_image_tokens(run: Run) -> None:
    _, out, _ = run("list", "models")
    [line] = [line for line in out.splitlines() if line.startswith("llama-3.2-1b")]
    assert "none" in line
    assert "neurons only" in line
