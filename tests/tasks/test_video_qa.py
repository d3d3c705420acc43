"""MSVD-QA and MSRVTT-QA: the data as it is distributed, the scores, and small videos on the whole way to a record."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from judge_server import judge_server, says
from video_files import write_video
from video_model import FRAME, save_video_llava

from coremat.errors import DataError
from coremat.methods.registry import parse
from coremat.models.load import LoadedModel, load
from coremat.preprocessing.prompt_format import Preprocessing
from coremat.results.record.eval import Record, read_samples
from coremat.tasks.bundled.video_qa.data import OWN_DATASETS
from coremat.tasks.bundled.video_qa.data import load as load_data
from coremat.tasks.bundled.video_qa.scoring import exact_results, judged_results
from coremat.tasks.catalogue import TASKS
from coremat.tasks.judge.client import Judge
from coremat.tasks.run.runner import evaluate

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
METHODS = {name: parse(name) for name in ("dense", "corematching")}
QUESTIONS = [  # video, question, answer
    ("-4wsuPCjDBc_5_15", "what is the man cutting?", "tomato"),
    ("-4wsuPCjDBc_5_15", "who is cutting it?", "man"),
    ("jfrrO5K_vKM_55_65", "how many dogs run?", "two"),
    ("jfrrO5K_vKM_55_65", "what do the dogs do?", "run"),
    ("video7010", "is somebody there?", "yes"),
]
FOLDER = "GPT_Zero_Shot_QA/{}_Zero_Shot_QA"


def write_questions(folder: Path, answers: list[str] | None = None) -> None:
    targets = answers or [answer for _, _, answer in QUESTIONS]
    ids = [f"id_{number}" for number in range(len(QUESTIONS))]
    asked = [{"video_name": v, "question": q, "question_id": n} for (v, q, _), n in zip(QUESTIONS, ids, strict=True)]
    told = [{"answer": a, "type": 3, "question_id": n} for a, n in zip(targets, ids, strict=True)]
    (folder / "test_q.json").write_text(json.dumps(asked))
    (folder / "test_a.json").write_text(json.dumps(told))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with both tasks, of three videos each."""
    for name in ("MSVD", "MSRVTT"):
        folder = tmp_path / "data" / FOLDER.format(name)
        write_video(folder / "videos/-4wsuPCjDBc_5_15.mp4", [RED] * 8 + [GREEN] * 4)
        write_video(folder / "videos/jfrrO5K_vKM_55_65.avi", [BLUE, GREEN] * 5, (32, 80))
        write_video(folder / "videos/video7010.mkv", [GREEN] * 3, (96, 64))
        write_questions(folder)
    return tmp_path / "data"


@pytest.fixture
def folder(root: Path) -> Path:
    return root / FOLDER.format("MSVD")


# --- data --------------------------------------------------------------------------------------------------------


def test_questions_answers_and_videos_are_joined(folder: Path) -> None:
    data = load_data(folder)
    assert list(data) == ["test"]
    assert [(row["video_name"], row["question"], row["answer"]) for row in data["test"]] == QUESTIONS
    assert data["test"][2] == {
        "video": str(folder / "videos/jfrrO5K_vKM_55_65.avi"),
        "video_name": "jfrrO5K_vKM_55_65",
        "question": "how many dogs run?",
        "answer": "two",
        "question_id": "id_2",
        "type": "3",
    }


def test_each_task_finds_its_data_under_its_own_path() -> None:
    paths = [data.path for data in (TASKS[name].data for name in ("msvd-qa", "msrvtt-qa")) if data]
    assert paths == list(OWN_DATASETS) == [FOLDER.format("MSVD"), FOLDER.format("MSRVTT")]


def changed(folder: Path, name: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    entries = json.loads((folder / name).read_text())
    change(entries)
    (folder / name).write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("test_q.json", lambda entries: entries[1].pop("question"), "entry 1 of .*test_q.json is .*; accepted: a list"),
        ("test_q.json", lambda entries: entries.clear(), "test_q.json holds no list of entries"),
        ("test_a.json", lambda entries: entries.pop(), "question 'id_4', entry 4 .* where there is nothing"),
        ("test_a.json", lambda entries: entries.pop(2), "question 'id_2', entry 2 .* where there is 'id_3'"),
        ("test_a.json", lambda entries: entries.append(entries[0]), "has 6 answers to 5 questions"),
        (
            "test_q.json",
            lambda entries: [entry.update(video_name="gone") for entry in entries[:2]],
            "1 of 3 videos are not in .*videos, the first is 'gone'; accepted: files named so, with .mp4",
        ),
    ],
)
def test_data_that_does_not_fit_is_refused(folder: Path, name: str, change: Callable, said: str) -> None:
    changed(folder, name, change)
    with pytest.raises(DataError, match=said):
        load_data(folder)


@pytest.mark.parametrize("name", ["test_q.json", "test_a.json"])
def test_files_that_are_missing_or_broken_are_named(folder: Path, name: str) -> None:
    (folder / name).write_text("[{")
    with pytest.raises(DataError, match=f"{name} cannot be read as JSON"):
        load_data(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"there is no .*{name}; accepted: a folder with test_q.json"):
        load_data(folder)


# --- scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "score"), [("Tomato.", 1.0), ("a tomato", 0.0), ("The man cuts a tomato.", 0.0)])
def test_exact_match_compares_whole_answers(said: str, score: float) -> None:
    assert exact_results({"answer": "tomato"}, [said]) == {"exact_match": score}


def test_a_verdict_is_asked_for_the_question_the_answer_and_what_was_said() -> None:
    asked: list[tuple[str, ...]] = []

    def verdict(*given: str) -> tuple[bool, int]:
        asked.append(given)
        return True, 4

    scores = judged_results(verdict, {"question": "what?", "answer": "tomato"}, ["a tomato"])
    assert scores == {"judge_accuracy": 1.0, "judge_score": 4.0, "exact_match": 0.0}
    assert asked == [("what?", "tomato", "a tomato")]


# --- from the files to a record ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(str(save_video_llava(tmp_path_factory.mktemp("model"))), "cpu", "float32")


def answers(samples: pd.DataFrame) -> list[tuple[str, int, str]]:
    return [(row.method, row.doc_id, row.answer) for row in samples.itertuples()]


def scores(record: Record | None) -> dict[tuple[str, str], float | None]:
    assert record is not None
    return {(row.method, row.metric): row.score for row in record.rows}


def test_batches_answer_as_one_by_one(loaded: LoadedModel, root: Path, tmp_path: Path) -> None:
    """Without a judge there is the exact match alone."""
    for size in (1, 4):
        record = evaluate(
            loaded, ["msvd-qa", "msrvtt-qa"], METHODS, None, size, output=tmp_path / str(size), data_root=root
        )
        assert set(scores(record)) == {(method, "exact_match") for method in METHODS}
    alone, together = (read_samples(tmp_path / str(size)) for size in (1, 4))
    assert answers(alone) == answers(together)
    assert len(alone) == 2 * 2 * len(QUESTIONS)
    assert set(alone.question) == {question for _, question, _ in QUESTIONS}
    assert set(alone.image_tokens) == {8 * FRAME}
    assert (alone[alone.method == "corematching"].image_tokens_kept < 8 * FRAME).all()
    assert alone.answer.nunique() > 3


def test_exact_match_and_a_judges_verdicts_are_in_the_record(
    loaded: LoadedModel, folder: Path, root: Path, tmp_path: Path
) -> None:
    """The targets of the first two questions are what the dense model says; the judge likes the third."""
    evaluate(loaded, ["msvd-qa"], {"dense": METHODS["dense"]}, output=tmp_path / "first", data_root=root)
    said = [answer for _, _, answer in answers(read_samples(tmp_path / "first"))]
    write_questions(folder, [*said[:2], "two", "run", "yes"])
    liked, other = says("{'pred': 'yes', 'score': 4}"), says("{'pred': 'no', 'score': 1}")
    with judge_server(lambda text: liked if QUESTIONS[2][1] in text else other) as server:
        judge = Judge(server.url, "served", tmp_path / "judge.jsonl")
        record = evaluate(
            loaded, ["msvd-qa"], {"dense": METHODS["dense"]}, output=tmp_path / "second", data_root=root, judge=judge
        )
    expected = {"judge_accuracy": 20.0, "judge_score": (4 + 4 * 1) / 5, "exact_match": 40.0}
    assert scores(record) == {("dense", metric): pytest.approx(score) for metric, score in expected.items()}


def test_the_number_of_frames_belongs_to_the_run(loaded: LoadedModel, root: Path, tmp_path: Path) -> None:
    fewer = replace(loaded, preprocessing=Preprocessing(frames=2))
    record = evaluate(fewer, ["msvd-qa"], {"dense": METHODS["dense"]}, 2, output=tmp_path / "run", data_root=root)
    assert record is not None
    assert record.config["preprocessing"]["frames"] == 2
    assert set(read_samples(tmp_path / "run").image_tokens) == {2 * FRAME}
