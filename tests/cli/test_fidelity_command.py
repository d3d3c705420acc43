"""`coremat fidelity`: all three ways of asking, models of text alone, and one sentence for bad input."""

import json
from pathlib import Path

import pytest
from PIL import Image
from said import Run, refused
from text_model import save_text_model

from coremat.results.record.fidelity import FidelityRecord
from coremat.tasks.bundled.shapes.generator import make_scene

ACCEPTED = "accepted: one of --prompts, --tasks, and --images with --question"
METHODS = ("--methods", "core-neurons,fastv:tokens=36")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        Image.fromarray(make_scene((12, number)).pixels).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture either")
    return folder


@pytest.fixture
def prompts(tmp_path: Path, pictures: Path) -> Path:
    """The last one shows nothing."""
    path = tmp_path / "prompts.jsonl"
    shown = [{"question": "list all objects", "image": f"pictures/{number}.png"} for number in range(2)]
    path.write_text("\n".join(map(json.dumps, [*shown, {"question": "list all objects"}])))
    return path


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    return save_text_model(tmp_path / "text")


def test_prompts_with_and_without_an_image(run: Run, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("fidelity", *METHODS, "--prompts", prompts, "--new-tokens", 4, "--output", out)
    code, shown, err = run(*asked)
    assert code == 0, err
    assert "shapes-llava: fidelity to the dense model" in shown
    record = FidelityRecord.read(out)
    assert [(row.method, row.questions) for row in record.rows] == [
        (name, 3) for name in ("dense", "core-neurons", "fastv:tokens=36")
    ]
    dense, neurons, tokens = record.rows
    assert (dense.kl, dense.agreement) == (0, 100)
    assert neurons.kl > 0
    assert neurons.ffn_read_mib < dense.ffn_read_mib
    assert tokens.image_tokens_kept == pytest.approx(2 * 36 / 3)
    assert run("check", out, "--baseline", out)[1].splitlines()[-1] == "no regression in 6 rows"
    assert run(*asked)[0] == 0  # the same command again
    assert "holds another run (new_tokens: 4 there, 64 here" in refused(run(*asked[:5], "--output", out))


def test_a_question_about_each_image_of_a_folder(run: Run, pictures: Path, tmp_path: Path) -> None:
    (pictures / "2.jpg").write_bytes((pictures / "0.png").read_bytes()[:200])
    out = tmp_path / "out"
    options = ("--images", pictures, "--question", "list all objects", "--new-tokens", 4, "--output", out)
    code, _, err = run("fidelity", *METHODS, *options)
    assert code == 0, err
    assert "question 2.jpg of pictures is left out:" in " ".join(err.split())
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [line["doc_id"] for line in lines] == ["0.png", "1.png"] * 3
    assert FidelityRecord.read(out).config["broken"][0]["doc_id"] == "2.jpg"


def test_tasks_are_asked_what_they_are_scored_on(run: Run, tmp_path: Path) -> None:
    options = ("--tasks", "shapes,easyvqa", "--limit", 2, "--new-tokens", 4, "--output", tmp_path)
    code, _, err = run("fidelity", "--methods", "dense,random-tokens", *options, "--report", "markdown")
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(line["source"], line["doc_id"]) for line in lines[:4]] == [
        (task, number) for task in ("shapes", "easyvqa") for number in (0, 1)
    ]
    assert {row.source for row in FidelityRecord.read(tmp_path).rows} == {"shapes", "easyvqa"}
    evaluated = tmp_path / "eval"
    assert run("eval", "--tasks", "shapes", "--methods", "dense", "--limit", 2, "--output", evaluated)[0] == 0
    scored = [json.loads(line) for line in (evaluated / "samples.jsonl").read_text().splitlines()]
    assert [line["question"].split("\n")[0] for line in lines[:2]] == [
        line["question"].split("\n")[0] for line in scored
    ]


def test_a_model_of_text_alone(run: Run, text_model: Path, prompts: Path, tmp_path: Path) -> None:
    options = ("--model", text_model, "--new-tokens", 4, "--output", tmp_path / "out")
    code, shown, err = run("fidelity", *METHODS, "--prompts", prompts, *options)
    assert code == 0, err
    assert "fastv:tokens=36 skipped: LlamaForCausalLM has no image tokens" in " ".join(shown.split())
    assert " ".join(err.split()).count("shows an image, and the model reads text alone") == 2
    assert "image\ntokens" not in shown
    assert [row.questions for row in FidelityRecord.read(tmp_path / "out").rows] == [1, 1]
    reads = "reads text alone; accepted: --prompts with questions alone"
    pictures = ("--images", prompts.parent / "pictures", "--question", "what?")
    assert reads in refused(run("fidelity", *pictures, "--model", text_model))
    assert "(llama) reads text alone" in refused(run("fidelity", "--tasks", "shapes", "--model", text_model))


def test_one_way_of_asking(run: Run, prompts: Path, pictures: Path) -> None:
    given = ("fidelity", "--prompts", prompts)
    assert f"asked is nothing; {ACCEPTED}" in refused(run("fidelity"))
    assert f"asked is --prompts and --tasks; {ACCEPTED}" in refused(run(*given, "--tasks", "shapes"))
    assert f"--question stands alone; {ACCEPTED}" in refused(run(*given, "--question", "what?"))
    assert f"--images stands alone; {ACCEPTED}" in refused(run("fidelity", "--images", pictures))


def test_bad_input_is_one_sentence(run: Run, prompts: Path, pictures: Path, tmp_path: Path) -> None:
    given = ("fidelity", "--prompts", prompts)
    empty = tmp_path / "empty"
    empty.mkdir()
    asks = ("--question", "what?")
    assert "unknown method 'grifin': did you mean 'griffin'" in refused(run(*given, "--methods", "grifin"))
    assert "--methods is ','" in refused(run(*given, "--methods", ","))
    assert "unknown model 'shapes-lava'" in refused(run(*given, "--model", "shapes-lava"))
    assert "unknown task" in refused(run("fidelity", "--tasks", "shape"))
    assert "cannot be read: [Errno 2]" in refused(run("fidelity", "--prompts", tmp_path / "nowhere.jsonl"))
    assert "cannot be read: No such file" in refused(run("fidelity", "--images", tmp_path / "nowhere", *asks))
    assert "cannot be read: Not a directory" in refused(run("fidelity", "--images", prompts, *asks))
    assert "there is no image in" in refused(run("fidelity", "--images", empty, *asks))
    assert "--question is ' '" in refused(run("fidelity", "--images", pictures, "--question", " "))
    assert run(*given, "--new-tokens", 0)[0] == 2
    assert run(*given, "--limit", 0)[0] == 2
    (tmp_path / "file").write_text("")
    said = refused(run(*given, *METHODS, "--new-tokens", 2, "--output", tmp_path / "file"))
    assert "cannot write" in said


def test_no_prompt_left(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"question": "what?", "image": "gone.png"}\n')
    said = refused(run("fidelity", "--prompts", path, *METHODS, "--output", tmp_path / "out"))
    assert "no question is left of 1; the first: there is no file" in said
