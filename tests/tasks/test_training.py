"""How the bundled model is trained: packed questions are the same as single ones, and a stopped run goes on."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("easy_vqa", reason="training needs the package easy-vqa")

from coremat.tasks.bundled.shapes.generator import make_questions, make_scene
from coremat.tasks.train_shapes_llava import train
from coremat.tasks.train_shapes_llava.architecture import ANSWER_WORDS, build_processor
from coremat.tasks.train_shapes_llava.data import COLOR_LABELS, SHAPE_LABELS, pixel_tensor, shapes_example
from coremat.tasks.train_shapes_llava.packing import IGNORE, image_features
from coremat.tasks.train_shapes_llava.train import Plan, Training

PLAN = Plan(tower_steps=2, tower_batch=2, whole_steps=3, whole_batch=2, questions=4, warmup=1)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    return Training(PLAN, tmp_path_factory.mktemp("training"))


def test_a_packed_question_is_answered_as_it_is_alone(training: Training) -> None:
    """Each question of a packed sequence has the logits that the processor's own prompt gives it."""
    scene = make_scene((5, 1))
    example = shapes_example(scene, make_questions(scene, (5, 2), 4))
    model, packed = training.model.eval(), training.pack([example, example])
    processor = build_processor(training.tokenizer)
    with torch.inference_mode():
        features = image_features(model, pixel_tensor([example, example]))
        embeds = model.get_input_embeddings()(packed.ids)
        where = (packed.ids == model.config.image_token_id)[..., None]
        together = model.model.language_model(
            inputs_embeds=embeds.masked_scatter(where, features),
            attention_mask=packed.mask(),
            position_ids=packed.positions,
            use_cache=False,
        ).last_hidden_state[0]
        for number, question in enumerate(example.questions, start=1):
            content = [{"type": "image"}, {"type": "text", "text": question.question}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(
                images=[Image.fromarray(scene.pixels)],
                text=[f"{text} {question.answer}"],
                return_tensors="pt",
                add_special_tokens=False,
            )
            alone = model(**inputs).logits[0]
            own = (packed.segment[0] == number).nonzero()[:, 0]
            assert torch.equal(inputs["input_ids"][0, -len(own) :], packed.ids[0, own])
            offset = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[-1] + 1
            torch.testing.assert_close(
                model.lm_head(together[own]), alone[offset : offset + len(own)], atol=1e-4, rtol=1e-4
            )


def test_targets_spell_the_answer_and_end_it(training: Training) -> None:
    scene = make_scene((5, 1))
    example = shapes_example(scene, make_questions(scene, (5, 2), 3))
    packed = training.pack([example])
    for number, question in enumerate(example.questions, start=1):
        own = packed.targets[0][packed.segment[0] == number]
        spelled = own[own != IGNORE].tolist()
        assert spelled[-1] == training.tokenizer.eos_token_id
        assert training.tokenizer.decode(spelled[:-1]).strip() == question.answer


def test_no_answer_word_is_a_single_token(training: Training) -> None:
    lengths = {word: len(training.tokenizer(" " + word)["input_ids"]) for word in ANSWER_WORDS}
    assert [word for word, length in lengths.items() if length < 2] == []


def test_labels_say_what_covers_each_patch() -> None:
    scene = make_scene((5, 3))
    colors, shapes = shapes_example(scene, []).labels
    for thing in scene.things:
        cell = np.s_[4 * thing.row : 4 * thing.row + 4, 4 * thing.column : 4 * thing.column + 4]
        assert SHAPE_LABELS.index(thing.text or thing.shape) in shapes.reshape(12, 12)[cell]
    assert COLOR_LABELS[int(np.bincount(colors).argmax())] == "ground"


def test_a_stopped_training_ends_as_one_that_ran_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    through, stopped = Training(PLAN, _folder(tmp_path / "a")), Training(PLAN, _folder(tmp_path / "b"))
    through.run()
    real = train.Training._run_stage

    def tower_only(self: Training, steps: int, size: int, peak: float) -> None:
        if self.stage == "whole":
            raise KeyboardInterrupt
        real(self, steps, size, peak)

    monkeypatch.setattr(train.Training, "_run_stage", tower_only)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    monkeypatch.setattr(train.Training, "_run_stage", real)
    again = Training(PLAN, tmp_path / "b")
    again.run()
    for name, weight in through.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name


def test_every_size_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Plan] = []
    monkeypatch.setattr(train.Training, "__init__", lambda self, plan, output: made.append(plan))
    monkeypatch.setattr(train.Training, "run", lambda self: None)
    app = typer.Typer()
    app.command()(train.main)
    sizes = {field.name: number for number, field in enumerate(fields(Plan), start=1)}
    given = [word for name, value in sizes.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    for options in (given, []):
        assert CliRunner().invoke(app, ["--output", str(tmp_path / "out"), *options]).exit_code == 0
    assert made == [Plan(**sizes), Plan()]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
