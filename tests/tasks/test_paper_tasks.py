"""Every task of the paper on its mirror, through lmms-eval's own code, with models whose scores are known exactly."""

import socket
from collections import Counter
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from fake_answers import FAKE
from judge_server import judge_server, says
from mirrors import NAMES, VIDEO_TASKS, write_mirrors
from mirrors_questions import QUESTIONS
from oracles import METHODS, Oracles, asked_by, install

import coremat.tasks.lmms_eval.model
from coremat.generate import answering
from coremat.methods.registry import parse
from coremat.models.load import load
from coremat.results.record.eval import Record, read_samples
from coremat.tasks.catalogue import resolve_tasks
from coremat.tasks.judge.client import Judge
from coremat.tasks.run.runner import evaluate

NEW_TOKENS = 8  # of the real model; what follows takes time and shows no more
SCORES = {  # by task and metric: of the model that is right, of the one that is wrong, of "Yes" and of "A" to all
    ("vqav2_val", "exact_match"): (100, 0, 70, 0),
    ("gqa", "exact_match"): (100, 0, 25, 0),
    ("scienceqa_img", "exact_match"): (100, 0, 0, 25),
    ("textvqa_val", "exact_match"): (100, 0, 220 / 3, 0),
    ("pope", "pope_f1_score"): (100, 0, 200 / 3, 0),
    ("pope", "pope_accuracy"): (100, 0, 50, 0),
    ("pope_adv", "pope_f1_score"): (100, 0, 200 / 3, 0),
    ("pope_pop", "pope_f1_score"): (100, 0, 200 / 3, 0),
    ("pope_random", "pope_f1_score"): (100, 0, 200 / 3, 0),
    ("mme", "mme_perception_score"): (2000, 0, 500, 0),
    ("mme", "mme_cognition_score"): (800, 0, 200, 0),
    ("mmbench_en_dev_static", "gpt_eval_score"): (100, 0, 0, 0),
    ("seedbench", "seed_image"): (100, 0, 0, 25),
    ("vizwiz_vqa_val", "exact_match"): (100, 0, 68, 0),
    ("mmvet", "gpt_eval_score"): (100, 10, 32.5, 10),
    ("docvqa_val", "anls"): (100, 0, 25, 0),
    ("infovqa_val", "anls"): (100, 0, 20, 0),
    ("chartqa", "relaxed_overall"): (100, 0, 25, 0),
    ("chartqa", "relaxed_human_split"): (100, 0, 50, 0),
    ("chartqa", "relaxed_augmented_split"): (100, 0, 0, 0),
    ("ocrbench", "ocrbench_accuracy"): (1, 0, 0.1, 0),
    ("ai2d", "exact_match"): (100, 0, 0, 25),
    ("msvd_qa", "judge_accuracy"): (100, 0, 20, 0),
    ("msvd_qa", "judge_score"): (5, 1, 1.8, 1),
    ("msvd_qa", "exact_match"): (100, 0, 20, 0),
    ("msrvtt_qa", "judge_accuracy"): (100, 0, 50, 0),
    ("msrvtt_qa", "judge_score"): (5, 1, 3, 1),
    ("msrvtt_qa", "exact_match"): (100, 0, 50, 0),
    ("activitynetqa", "gpt_eval_accuracy"): (100, 0, 25, 0),
    ("activitynetqa", "gpt_eval_score"): (5, 1, 2, 1),
}


def grade(content):
    """What is right has full marks, everything else the lowest but none."""
    one = asked_by(content)
    if "Predicted Answer:" in content:
        assert f"Correct Answer: {one.right}\n" in content
        right = f"Predicted Answer: {one.right}\n".lower() in content.lower()
        return says(f"{{'pred': '{'yes' if right else 'no'}', 'score': {5 if right else 1}}}")
    answer = one.right.replace(" and ", " <AND> ")
    return says("1.0" if f"| {answer} | {one.right} |".lower() in content.lower() else "0.1")


@pytest.fixture(scope="session")
def mirrors(tmp_path_factory):
    root = tmp_path_factory.mktemp("mirrors")
    write_mirrors(root)
    return root


def judged(*arguments, output, **options):
    """`evaluate` with a judge that grades so."""
    with judge_server(grade) as server:
        judge = Judge(server.url, "grader", output / "judge.jsonl")
        return evaluate(*arguments, output=output, judge=judge, **options)


class Run(NamedTuple):
    """All models on all tasks: the record, what they were asked and how, and where connections went to."""

    record: Record
    asked: list[tuple[str, dict[str, Any]]]
    hosts: set[str]


@pytest.fixture(scope="module")
def run(mirrors, tmp_path_factory):
    hosts, connect = set(), socket.socket.connect

    def noted(self, address):
        hosts.add(address[0])
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noted)
        oracles = install(patch.setattr, Oracles())
        record = judged(FAKE, NAMES, METHODS, output=tmp_path_factory.mktemp("run"), data_root=mirrors)
    return Run(record, oracles.asked, hosts)


@pytest.fixture(scope="module")
def found(run):
    return {(row.task, row.metric, row.method): row.score for row in run.record.rows}


@pytest.mark.parametrize(("task", "metric"), SCORES)
def test_scores_are_exact(found, task, metric):
    scores = [found[task, metric, method] for method in METHODS]
    assert scores == pytest.approx(SCORES[task, metric], abs=1e-9)


def test_every_score_of_the_catalogue_is_here(found):
    pairs = {(task, metric) for task, metric, _ in found}
    assert pairs - set(SCORES) == {
        ("pope_adv", "pope_accuracy"),
        ("pope_pop", "pope_accuracy"),
        ("pope_random", "pope_accuracy"),
    }
    for info in resolve_tasks(NAMES):
        assert {score.metric for score in info.scores} <= {metric for task, metric in pairs if task in info.tasks}


def test_every_question_is_put_to_every_model(run):
    """As often as it is in a dataset; those of SEED-Bench on videos are another benchmark's."""
    expected = {one: len(METHODS) for name, every in QUESTIONS.items() if name != "seed_video" for one in every}
    expected |= {one: len(METHODS) * len(one.options) for one in QUESTIONS["mmbench"]}  # in every rotation
    assert Counter(asked_by(text) for text, _ in run.asked) == expected


def test_decoding_is_greedy_and_ends(run):
    assert {settings["do_sample"] for _, settings in run.asked} == {False}
    assert all(16 <= settings["max_new_tokens"] <= 1024 for _, settings in run.asked)


def test_nothing_beyond_this_machine_is_reached_for(run):
    assert run.hosts == {"127.0.0.1"}


@contextmanager
def answering_shortly(loaded, method):
    with answering(loaded, method) as answer:
        yield lambda asked, settings, seeds=None: answer(asked, {**settings, "max_new_tokens": NEW_TOKENS}, seeds)


def test_a_model_answers_the_same_in_batches(mirrors, tmp_path, monkeypatch):
    """The bundled model, which knows few of the words, with tokens and neurons dropped."""
    monkeypatch.setattr(coremat.tasks.lmms_eval.model, "answering", answering_shortly)
    loaded, images = load("shapes-llava", "cpu"), [name for name in NAMES if name not in VIDEO_TASKS]
    for size in (1, 4):
        methods = {"corematching": parse("corematching")}
        judged(loaded, images, methods, batch_size=size, output=tmp_path / str(size), data_root=mirrors)
    alone, together = (read_samples(tmp_path / str(size)) for size in (1, 4))
    assert set(alone.task) == {task for info in resolve_tasks(images) for task in info.tasks}
    for column in ("task", "doc_id", "answer", "kept"):
        assert list(alone[column]) == list(together[column])
    assert alone.answer.nunique() > 20
    assert (alone.image_tokens_kept < alone.image_tokens).all()
