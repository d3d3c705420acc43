"""How smol-llava is trained: its parts against slow references, and a stopped run goes on."""

import csv
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file
from tiny_gguf import tiny_language_model, write_gguf
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration
from typer.testing import CliRunner

pytest.importorskip("easy_vqa", reason="training needs the package easy-vqa")
pytest.importorskip("gguf", reason="reading a GGUF file needs the package gguf (`make smol`)")

from coremat.models.known import bundled_folder
from coremat.models.smol_llava import assemble
from coremat.models.smol_llava.language_model import LanguageModelFile
from coremat.tasks.bundled.shapes.generator import COLUMNS, ROWS, SIGN, make_questions, make_scene
from coremat.tasks.train_shapes_llava.data import EasyVQA, pixel_tensor, shapes_example
from coremat.tasks.train_shapes_llava.packing import IGNORE, answer_logits, answered, image_features
from coremat.tasks.train_smol_llava import export, train
from coremat.tasks.train_smol_llava.architecture import LowRank, PatchPlacer, patch_cells, patch_targets, ridge
from coremat.tasks.train_smol_llava.data import (
    HARD_KINDS,
    objects_at,
    scene_questions,
    training_images,
    validation_examples,
)
from coremat.tasks.train_smol_llava.train import Plan, Training, rate_share

PLAN = Plan(
    tower_steps=2,
    tower_images=2,
    steps=4,
    images=1,
    questions=3,
    rank=2,
    warmup=1,
    start_images=8,
    checkpoint_every=1,
    validate_every=2,
    scenes=2,
    held_out=1,
)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A language model of two layers in the place of SmolLM2; the tower is the bundled one."""
    source = LanguageModelFile(write_gguf(tmp_path / "tiny.gguf", tiny_language_model()))
    folder = tmp_path / "text"
    source.model().save_pretrained(folder)
    source.tokenizer().save_pretrained(folder)
    config = LlavaConfig.from_pretrained(bundled_folder())
    config.text_config = source.config()
    config.image_token_index, config.tie_word_embeddings = 3, True
    for module in (train, export):
        monkeypatch.setattr(module, "language_model_folder", lambda: folder)
    for module in (train, assemble):
        monkeypatch.setattr(module, "llava_config", lambda: config)


def run(plan: Plan, folder: Path) -> Training:
    folder.mkdir(exist_ok=True)
    training = Training(plan, folder)
    training.run()
    return training


# --- parts --------------------------------------------------------------------------------------------------------


def test_a_low_rank_update_is_a_sum_of_products() -> None:
    base = nn.Linear(5, 4, bias=False)
    layer, x = LowRank(base, 2), torch.randn(3, 5)
    assert torch.equal(layer(x), base(x))
    nn.init.normal_(layer.up)
    want = torch.stack(
        [sum(base.weight[o] @ row if r < 0 else layer.up[o, r] * (layer.down[r] @ row) for r in (-1, 0, 1))
         for row in x for o in range(4)]
    ).reshape(3, 4)  # fmt: skip
    torch.testing.assert_close(layer(x), want)


def test_ridge_is_least_squares_with_a_penalty() -> None:
    x, y, weight = torch.randn(50, 3), torch.randn(50, 2), torch.rand(50) + 0.1
    ones = np.concatenate([x.numpy(), np.ones((50, 1))], 1).astype(np.float64)
    root = np.sqrt(weight.numpy().astype(np.float64))[:, None]
    penalty = 1e-3 * np.mean(np.diag((ones * root).T @ (ones * root)))
    rows = np.concatenate([ones * root, np.sqrt(penalty) * np.eye(4)])
    want = np.linalg.lstsq(rows, np.concatenate([y.numpy() * root, np.zeros((4, 2))]), rcond=None)[0]
    np.testing.assert_allclose(ridge(x, y, weight).numpy(), want, atol=1e-5)


def test_patches_are_in_the_cells_of_a_scene() -> None:
    rows, columns = patch_cells()
    assert [(int(rows[n]), int(columns[n])) for n in (0, 3, 4, 11, 48, 143)] == [
        (0, 0), (0, 0), (0, 1), (0, 2), (1, 0), (2, 2)
    ]  # fmt: skip


def test_the_placer_counts_patches_of_objects() -> None:
    example, placer = shapes_example(make_scene((5, 3)), []), PatchPlacer(6)
    features = torch.zeros(1, 144, 6)
    rows, columns = patch_cells()
    features[0, torch.arange(144), rows] = features[0, torch.arange(144), 3 + columns] = 9.0
    with torch.no_grad():
        for head, first in ((placer.row, 0), (placer.column, 3)):
            head.weight.copy_(torch.eye(6)[first : first + 3])
            head.bias.zero_()
        loss, right = placer.loss(features, [example])
        assert right == 1.0
        assert loss < 0.01
        placer.row.weight.copy_(placer.row.weight.roll(1, 0))
        assert placer.loss(features, [example])[1] == 0.0


@pytest.mark.usefixtures("tiny")
def test_the_target_of_a_patch_is_the_sum_of_its_words(tmp_path: Path) -> None:
    training = Training(PLAN, tmp_path)
    scene = make_scene((5, 3))
    target = patch_targets(training.model, training.tokenizer, [shapes_example(scene, [])], place=0.5)
    embeddings = training.model.get_input_embeddings().weight.float()

    def word(text: str) -> torch.Tensor:
        ids = training.tokenizer(" " + text)["input_ids"]
        return sum(embeddings[i] for i in ids) / len(ids)

    for thing in scene.things:
        own = word(thing.color or SIGN) + word(thing.text or thing.shape)
        want = own + 0.5 * (word(ROWS[thing.row]) + word(COLUMNS[thing.column]))
        assert any(torch.allclose(row, want, atol=1e-5) for row in target)
    assert any(torch.allclose(row, word("ground"), atol=1e-5) for row in target)


# --- data ---------------------------------------------------------------------------------------------------------


def test_scenes_grow() -> None:
    assert [objects_at(done) for done in (0, 0.05, 0.2, 0.3, 1.0)] == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 4)]


def test_hard_kinds_are_asked_more() -> None:
    asked = [q for n in range(20) for q in scene_questions(make_scene((9, n)), (9, n), 16)]
    kinds = [q.kind for q in asked]
    assert kinds.count("relation") + kinds.count("location") > len(asked) / 3
    assert set(HARD_KINDS) < set(kinds)


def test_held_out_images_are_not_trained_on() -> None:
    easy = EasyVQA()
    held = list(validation_examples(easy, scenes=0, images=200))
    assert len(held) + len(training_images(easy)) == len(easy.questions)
    assert not {image for image in training_images(easy) if image % 40 == 0}


# --- a run --------------------------------------------------------------------------------------------------------


def test_the_rate_rises_stays_and_falls() -> None:
    plan = replace(PLAN, warmup=10, constant_until=0.5, last_rate=0.1)
    shares = [rate_share(step, 100, plan) for step in (0, 4, 9, 10, 50, 100)]
    assert shares == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0, 0.1])
    assert 0.1 < rate_share(75, 100, plan) < 1.0


@pytest.mark.usefixtures("tiny")
def test_a_question_counts_as_answered_when_every_token_is(tmp_path: Path) -> None:
    training = Training(PLAN, tmp_path)
    scenes = [make_scene((5, n)) for n in range(2)]
    batch = [shapes_example(scene, make_questions(scene, (5, 2), 2 + n)) for n, scene in enumerate(scenes)]
    packed = training.pack(batch)
    with torch.no_grad():
        features = image_features(training.model, pixel_tensor(batch))
        packed.targets[packed.targets != IGNORE] = answer_logits(training.model, features, packed).argmax(-1)
        assert answered(training.model, features, packed) == [[True] * 2, [True] * 3]
        last = (packed.segment[1] == 2).nonzero()[-1]
        packed.targets[1, last] += 1
        assert answered(training.model, features, packed) == [[True] * 2, [True, False, True]]


@pytest.mark.usefixtures("tiny")
def test_a_stopped_training_ends_as_one_that_ran_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two steps of either stage, the second time before the checkpoint of a step is written."""
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    through, real = run(PLAN, tmp_path / "a"), Training._take_step
    for stage, at in (("tower", 1), ("whole", 3)):

        def killed(self: Training, steps: int, stage: str = stage, at: int = at) -> None:
            if (self.stage, self.step) == (stage, at):
                raise KeyboardInterrupt
            real(self, steps)

        monkeypatch.setattr(Training, "_take_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run(replace(PLAN, checkpoint_every=2 if stage == "whole" else 1), tmp_path / "b")
    monkeypatch.setattr(Training, "_take_step", real)
    again = run(PLAN, tmp_path / "b")
    for name, weight in through.trained.items():
        assert torch.equal(weight, again.trained[name]), name
    curves = []
    for folder in ("a", "b"):
        with (tmp_path / folder / "curve.csv").open() as file:
            curves.append([{**row, "cpu_seconds": ""} for row in csv.DictReader(file)])
    assert curves[0] == curves[1]


@pytest.mark.usefixtures("tiny")
def test_what_is_shipped_is_what_was_trained(tmp_path: Path) -> None:
    """Put together, it gives the logits that the trained parts gave, up to bfloat16."""
    training = run(PLAN, tmp_path / "a")
    shipped = tmp_path / "a" / "shipped"
    assert {path.name for path in shipped.iterdir()} == {
        assemble.ADAPTER, "checksums.json", "curve.csv", "curve.png", "README.md"
    }  # fmt: skip
    assert f"| {PLAN.tower_steps} |" in (shipped / "README.md").read_text()
    text = LanguageModelFile(tmp_path / "tiny.gguf").model()
    model = assemble.put_together(text, load_file(shipped / assemble.ADAPTER))
    assert json.loads((shipped / "checksums.json").read_text())["smol-llava"] == assemble.digest(model.state_dict())
    assert isinstance(model, LlavaForConditionalGeneration)
    scene = make_scene((5, 1))
    batch = [shapes_example(scene, make_questions(scene, (5, 2), 3))]
    packed = training.pack(batch)
    with torch.no_grad():
        ours, theirs = (
            answer_logits(m.float(), image_features(m, pixel_tensor(batch)), packed) for m in (training.model, model)
        )
    torch.testing.assert_close(ours, theirs, atol=0.1 * float(ours.std()), rtol=0)


def test_every_size_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Plan] = []
    monkeypatch.setattr(Training, "__init__", lambda self, plan, output: made.append(plan))
    monkeypatch.setattr(Training, "run", lambda self: None)
    app = typer.Typer()
    app.command()(train.main)
    sizes = {field.name: number for number, field in enumerate(fields(Plan), start=1)}
    given = [word for name, value in sizes.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    for options in (given, []):
        assert CliRunner().invoke(app, ["--output", str(tmp_path / "out"), *options]).exit_code == 0
    assert made == [Plan(**sizes), Plan()]
