"""The prompts that a method is calibrated on: a file's lines, and questions of tasks that are not scored."""

import json
from pathlib import Path

import pytest
from fake_answers import FAKE
from PIL import Image

import coremat.tasks.calibration as calibration
from coremat.errors import DataError, UnsupportedError
from coremat.preprocessing.prompt_format import Preprocessing
from coremat.tasks.bundled.build_data import easyvqa_rows
from coremat.tasks.calibration import drawn, other_split, prompts_of_file, prompts_of_tasks
from coremat.tasks.catalogue import resolve_tasks
from coremat.tasks.lmms_eval.load import load_task


def lines(folder: Path, *rows: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def said(conversation) -> tuple[str, ...]:
    [message] = conversation
    return tuple(part.get("text", part["type"]) for part in message["content"])


def test_a_file_gives_its_first_lines_with_images_from_its_folder(tmp_path):
    Image.new("RGB", (8, 6), "red").save(tmp_path / "red.png")
    path = lines(tmp_path, {"question": "what?", "image": "red.png"}, "", {"question": "who?"}, {"question": "why?"})
    prompts = prompts_of_file(path, 2, Preprocessing())
    assert (prompts.count, prompts.about) == (2, [{"prompts": "prompts.jsonl", "count": 2}])
    first, second = prompts
    assert said(first) == ("image", "what?")
    assert first[0]["content"][0]["image"].size == (8, 6)
    assert said(second) == ("who?",)


def test_the_digest_is_of_words_and_pixels(tmp_path):
    digests = set()
    for colour, question in (("red", "what?"), ("red", "what?"), ("blue", "what?"), ("red", "who?")):
        Image.new("RGB", (8, 6), colour).save(tmp_path / "a.png")
        prompts = prompts_of_file(lines(tmp_path, {"question": question, "image": "a.png"}), 9, Preprocessing())
        assert len(list(prompts)) == 1
        digests.add(prompts.digest)
    assert len(digests) == 3


@pytest.mark.parametrize(
    "wrong", ["not json", "[1]", {"image": "a.png"}, {"question": 3}, {"question": "a", "picture": "a.png"}]
)
def test_a_line_that_is_no_prompt_is_refused(tmp_path, wrong):
    with pytest.raises(DataError, match=r"line 2 of .*prompts\.jsonl"):
        prompts_of_file(lines(tmp_path, {"question": "what?"}, wrong), 9, Preprocessing())


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"the prompts .* cannot be read"):
        prompts_of_file(tmp_path / "none.jsonl", 9, Preprocessing())
    with pytest.raises(DataError, match="there is no file"):
        list(prompts_of_file(lines(tmp_path, {"question": "what?", "image": "none.png"}), 9, Preprocessing()))


def test_shapes_gives_questions_of_its_validation_split():
    prompts = prompts_of_tasks(resolve_tasks(["shapes"]), FAKE, 6, seed=3)
    [about] = prompts.about
    assert (prompts.count, about) == (
        6,
        {"task": "shapes", "split": "validation", "scored_on": False, "count": 6},
    )
    [validation] = load_task(resolve_tasks(["shapes_validation"])[0], None)
    docs = validation.task.dataset["validation"]
    expected = [docs[number]["question"] for number in drawn(len(docs), 6, 3)]
    assert [said(conversation)[-1] for conversation in prompts] == expected


def test_a_task_without_another_split_gives_its_last_questions_and_says_so():
    prompts = prompts_of_tasks(resolve_tasks(["shapes_validation"]), FAKE, 3, seed=3)
    [about] = prompts.about
    assert about["scored_on"]
    assert about["split"] == "validation, the last questions: it has no other"
    [validation] = load_task(resolve_tasks(["shapes_validation"])[0], None)
    docs = validation.task.dataset["validation"]
    assert [said(one)[-1] for one in prompts] == [docs[len(docs) - back]["question"] for back in (3, 2, 1)]


def test_easyvqa_gives_questions_of_its_packages_training_split(monkeypatch):
    prompts = prompts_of_tasks(resolve_tasks(["easyvqa", "easyvqa"]), FAKE, 4, seed=0)
    assert prompts.about[0] == {"task": "easyvqa", "split": "train", "scored_on": False, "count": 4}
    questions = {row["question"] for row in easyvqa_rows("train")}
    assert all(said(one)[0] == "image" and said(one)[1] in questions for one in prompts)
    monkeypatch.setattr(calibration, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="the Python package easy-vqa"):
        prompts_of_tasks(resolve_tasks(["easyvqa"]), FAKE, 4, seed=0)


@pytest.mark.parametrize(
    ("names", "scored", "found"),
    [
        (["test"], "test", None),
        (["test", "validation", "train"], "test", "train"),
        (["validation", "test"], "test", "validation"),
        (["val", "test"], "val", None),
        (["train", "test"], "train", None),
    ],
)
def test_a_split_that_is_not_scored_is_found_by_its_name(names, scored, found):
    assert other_split(names, scored) == found


def test_what_is_drawn_depends_on_the_seed_alone():
    assert drawn(100, 5, 1) == drawn(100, 5, 1) != drawn(100, 5, 2)
    assert sorted(drawn(5, 9, 1)) == [0, 1, 2, 3, 4]
