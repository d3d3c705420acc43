"""lmms-eval's own scoring code with our judge before it: the scores, and that a failure is never one of them."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmms_eval
import pandas as pd
import pytest
from judge_server import RETRY_DELAY, JudgeServer, Reply, Script, fails, judge_server, says
from lmms_eval.api.task import ConfigurableTask
from lmms_eval.utils import load_yaml_config

from coremat.errors import ConfigError, JudgeError, UnsupportedError
from coremat.tasks.judge.client import Judge
from coremat.tasks.judge.scoring import check_judge, judged_by, loadable, video_judge

FOLDER = Path(lmms_eval.__path__[0]) / "tasks"
OURS = Path(__file__).parent.parent.parent / "tasks"
YAMLS = {
    "mmvet": FOLDER / "mmvet/mmvet.yaml",
    "activitynetqa": FOLDER / "activitynetqa/activitynetqa_generation.yaml",
    "mmbench_en_dev": FOLDER / "mmbench/mmbench_en_dev.yaml",
    "llava_in_the_wild": FOLDER / "llava-in-the-wild/llava-in-the-wild.yaml",
    "mathverse_testmini": FOLDER / "mathverse/mathverse_testmini.yaml",
    "videochatgpt_gen": FOLDER / "videochatgpt/videochatgpt_generic.yaml",
    "msvd_qa": OURS / "bundled/video_qa/msvd_qa.yaml",
}


def load(name: str) -> Any:
    """lmms-eval's task without its data: all that scoring needs, with lmms-eval's own way of calling it."""
    with loadable():
        config = load_yaml_config(str(YAMLS[name]))
    task = ConfigurableTask.__new__(ConfigurableTask)
    task._config = SimpleNamespace(
        task=name, process_results=config.get("process_results"), metric_list=config.get("metric_list")
    )
    task.OUTPUT_TYPE = "generate_until"
    task._instances, task._filters = [], []
    return task


def aggregation(task: Any, metric: str) -> Any:
    return next(one["aggregation"] for one in task.config.metric_list if one["metric"] == metric)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server([says("nothing yet")]) as server:
        yield server


@pytest.fixture
def judge(server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    monkeypatch.setattr(RETRY_DELAY, 0.002)
    return Judge(server.url, "grader", tmp_path / "judge.jsonl", timeout=5.0, tries=3)


FAILURES: dict[str, Script] = {"500": [fails(500)], "empty": [says("")], "unreadable": [says("Who knows?")]}
every_failure = pytest.mark.parametrize("script", FAILURES.values(), ids=FAILURES)


# --- who asks --------------------------------------------------------------------------------------------


def test_a_judge_is_asked_for_before_the_run() -> None:
    for name in ("mmvet", "activitynetqa", "mmbench_en_dev"):
        with pytest.raises(
            ConfigError, match=f"^task {name} is graded by a judge: give --judge-url and --judge-model$"
        ):
            check_judge(name, None)
    for name in ("gqa", "mmbench_en_dev_static", "msvd_qa"):
        check_judge(name, None)


def scored(name: str, task: Any, judge: Judge | None = None, doc: Any = None) -> Any:
    """As lmms-eval does it when the answers are there."""
    with judged_by(name, task, judge):
        task.apply_filters()
        return task.process_results(doc, ["a ball"])


DOCS: dict[str, dict[str, Any]] = {
    "llava_in_the_wild": {"question": "what?", "gpt_answer": "red", "caption": "a ball", "category": "conv"},
    "mathverse_testmini": {"question_for_eval": "how many?", "answer": "two"},
    "videochatgpt_gen": {"question": "what?", "answer": "a dog", "video_name": "v"},
}


@pytest.mark.parametrize("name", DOCS)
@pytest.mark.parametrize("given", [True, False])
def test_a_task_that_asks_a_server_of_its_own_is_never_scored(
    name: str, given: bool, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where it catches all that is raised; without a key of the user's it would not come as far as a call."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    task = load(name)
    said = f"^task {name} asks api.openai.com for its scores, .* --judge-url and --judge-model serve mmvet, "
    with pytest.raises(UnsupportedError, match=said):
        scored(name, task, judge if given else None, DOCS[name])
    assert "OPENAI_API_KEY" not in os.environ


def calls(own: Callable[[], Any]) -> Any:
    """A task whose scoring does this, and then has a score whatever came of it."""

    def process_results(doc: Any, results: list[str]) -> dict[str, float]:
        try:
            own()
        except BaseException:
            return {"score": 0.0}
        return {"score": 1.0}

    task = load("msvd_qa")
    task._config.process_results = process_results
    return task


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "::1", "no.such.host"])
def test_a_call_that_is_caught_is_found(server: JudgeServer, address: str) -> None:
    with pytest.raises(UnsupportedError, match=f"^task own asks {address} for"):
        scored("own", calls(lambda: socket.create_connection((address, server.server_port), timeout=5)))


def test_a_call_by_number_is_found(server: JudgeServer) -> None:
    def call() -> None:
        with socket.socket() as own:
            own.connect(("127.0.0.1", server.server_port))

    with pytest.raises(UnsupportedError, match=r"asks 127\.0\.0\.1 for"):
        scored("own", calls(call))


def test_the_network_is_there_before_the_scores_and_after_them(server: JudgeServer) -> None:
    """Images may come from it."""

    def call() -> None:
        socket.create_connection(server.server_address, timeout=5).close()

    task = calls(call)
    with judged_by("own", task, None):
        call()
        task.apply_filters()
    call()
    assert task.process_results({}, ["a"]) == {"score": 1.0}


def test_processes_of_this_machine_are_no_network(tmp_path: Path) -> None:
    def call() -> None:
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as own:
            listening.bind(str(tmp_path / "s"))
            listening.listen()
            own.connect(str(tmp_path / "s"))

    assert scored("own", calls(call)) == {"score": 1.0}


def test_what_goes_wrong_otherwise_stays_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError), judged_by("own", load("msvd_qa"), None):
        raise ZeroDivisionError


def test_loading_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("API_TYPE", "azure")
    before = dict(os.environ)
    load("mmvet")
    load("activitynetqa")
    assert dict(os.environ) == before


def test_lmms_eval_never_holds_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-key-that-nobody-may-see")
    assert load("mmvet").config.process_results.__globals__["server"].api_key == "none"
    assert os.environ["OPENAI_API_KEY"] == "sk-a-key-that-nobody-may-see"


# --- MM-Vet ----------------------------------------------------------------------------------------------


def vet(number: int, answer: str = "red <AND> round") -> dict[str, Any]:
    return {"question_id": f"v1_{number}", "question": f"what is {number}?", "answer": answer, "capability": "rec,ocr"}


def grade(question: str) -> Reply:
    """The last line of MM-Vet's prompt is `question | truth | prediction |`."""
    return says({"red": "0.5 or so", "red and round": "1.0", "blue": "0.0"}[question.split(" | ")[-1].strip(" |")])


def test_mmvet(server: JudgeServer, judge: Judge) -> None:
    server.script = grade
    task = load("mmvet")
    own = task.config.process_results.__globals__["get_chat_response"]
    with judged_by("mmvet", task, judge):
        answers = ["red", "red and round", "blue"]
        graded = [task.process_results(vet(n), [answer])["gpt_eval_score"] for n, answer in enumerate(answers)]
        assert [one["score"] for one in graded] == [0.5, 1.0, 0.0]
        assert {one["eval_model"] for one in graded} == {"grader"}
        assert aggregation(task, "gpt_eval_score")(graded) == 50.0
    assert task.config.process_results.__globals__["get_chat_response"] is own
    asked = server.asked[0]
    assert asked["messages"][0]["content"].endswith("\nwhat is 0? | red  <AND>  round | red |")
    assert (asked["max_tokens"], asked["temperature"]) == (128, 0.0)


@pytest.mark.parametrize("unreadable", ["1.5", "nan", "-0.1", "good", "score: 0.5"])
def test_mmvet_takes_only_a_grade(server: JudgeServer, judge: Judge, unreadable: str) -> None:
    server.script = [says(unreadable), says("0.3")]
    task = load("mmvet")
    with judged_by("mmvet", task, judge):
        assert task.process_results(vet(0), ["red"])["gpt_eval_score"]["score"] == 0.3


@every_failure
def test_mmvet_is_never_scored_by_a_failure(server: JudgeServer, judge: Judge, script: Script) -> None:
    server.script = script
    task = load("mmvet")
    with judged_by("mmvet", task, judge), pytest.raises(JudgeError):
        task.process_results(vet(0), ["red"])
    assert len(server.asked) == 3  # the judge's tries, and lmms-eval's five do not multiply them


# --- ActivityNet-QA and Video-ChatGPT's protocol ---------------------------------------------------------

QA = {"video_name": "a", "question": "what runs", "answer": "dog", "question_id": "q", "type": "3"}
REVIEWS = {
    "a dog": "{'pred': 'yes', 'score': 4.8}",
    "dogs": "Sure: {'pred': 'Yes', 'score': 5}",
    "a cat": "{'pred': 'no', 'score': 0}",
}


def review(question: str) -> Reply:
    return says(REVIEWS[question.split("Predicted Answer: ")[1].split("\n")[0]])


def test_activitynetqa(server: JudgeServer, judge: Judge) -> None:
    server.script = review
    task = load("activitynetqa")
    own = task.config.process_results
    with judged_by("activitynetqa", task, judge):
        scored = [task.process_results(QA, [answer]) for answer in REVIEWS]
        told = [(one["gpt_eval_score"]["Correctness"], one["gpt_eval_score"]["score"]) for one in scored]
        assert told == [("yes", 4), ("yes", 5), ("no", 0)]
        scores = [one["gpt_eval_accuracy"] for one in scored]
        assert aggregation(task, "gpt_eval_accuracy")(scores, None) == pytest.approx(200 / 3)
        assert aggregation(task, "gpt_eval_score")(scores, None) == 3.0
    assert task.config.process_results is own
    assert own.__globals__["get_eval"].__name__ == "get_eval"
    assert len(server.asked) == 3
    roles = [message["role"] for message in server.asked[0]["messages"]]
    assert (roles, server.asked[0]["max_tokens"]) == (["system", "user"], 64)
    assert "Question: what runs\nCorrect Answer: dog\nPredicted Answer: a dog\n" in str(
        server.asked[0]["messages"][1]["content"]
    )


@pytest.mark.parametrize(
    "unreadable",
    [
        "yes",
        "{'pred': 'yes'}",
        "{'pred': 'maybe', 'score': 3}",
        "{'pred': 'yes', 'score': 9}",
        "{'pred': 'yes', 'score'",
    ],
)
def test_activitynetqa_takes_only_a_review(server: JudgeServer, judge: Judge, unreadable: str) -> None:
    server.script = [says(unreadable), says(REVIEWS["dogs"])]
    task = load("activitynetqa")
    with judged_by("activitynetqa", task, judge):
        assert task.process_results(QA, ["dogs"])["gpt_eval_score"]["score"] == 5
    assert len(server.asked) == 2


@every_failure
def test_activitynetqa_is_never_scored_by_a_failure(server: JudgeServer, judge: Judge, script: Script) -> None:
    server.script = script
    task = load("activitynetqa")
    with judged_by("activitynetqa", task, judge), pytest.raises(JudgeError):
        task.process_results(QA, ["a dog"])
    assert len(server.asked) == 3


def test_the_verdict_on_a_video(server: JudgeServer, judge: Judge) -> None:
    server.script = review
    verdict = video_judge(judge)
    assert [verdict("what runs?", "dog", answer) for answer in REVIEWS] == [
        (True, 4),
        (True, 5),
        (False, 0),
    ]


def test_own_video_tasks_are_judged_when_there_is_a_judge(server: JudgeServer, judge: Judge) -> None:
    server.script = review
    task = load("msvd_qa")
    with judged_by("msvd_qa", task, judge):
        scores = task.process_results(QA, ["a dog"])
    assert scores == {"judge_accuracy": 1.0, "judge_score": 4.0, "exact_match": 0.0}
    with judged_by("msvd_qa", task, None):
        assert task.process_results(QA, ["dog"]) == {"exact_match": 1.0}
    assert len(server.asked) == 1


# --- MMBench ---------------------------------------------------------------------------------------------


def bench(index: int, answer: str) -> dict[str, Any]:
    rest = {"hint": "nan", "source": "s", "split": "dev", "category": "c", "L2-category": "l"}
    return {
        "index": index,
        "question": "which?",
        "answer": answer,
        "A": "cat",
        "B": "dog",
        "C": "owl",
        "D": "bee",
    } | rest


ANSWERS = ["B", "the barking one", "the flying one", "a horse"]  # only the first needs no judge


def option(question: str) -> Reply:
    letters = {"barking": "B", "flying": "The output is C.", "horse": "E"}
    return says(next(letter for word, letter in letters.items() if word in question.split("Answer:")[-1]))


@pytest.fixture
def arguments(tmp_path: Path) -> SimpleNamespace:
    return SimpleNamespace(output_path=str(tmp_path))


def test_mmbench(server: JudgeServer, judge: Judge, arguments: SimpleNamespace) -> None:
    """Right by its letter, right by the judge, wrong by the judge, and meaning no option."""
    server.script = option
    task = load("mmbench_en_dev")
    docs = [bench(1, "B"), bench(2, "B"), bench(3, "D"), bench(4, "A")]
    with judged_by("mmbench_en_dev", task, judge):
        scored = [
            task.process_results(doc, [answer])["gpt_eval_score"] for doc, answer in zip(docs, ANSWERS, strict=True)
        ]
        aggregate = aggregation(task, "gpt_eval_score")
        assert aggregate(scored, arguments) == 50.0
        assert aggregate(scored, arguments) == 50.0
    assert len(server.asked) == 3
    assert server.asked[0]["max_tokens"] == 256
    assert "extract_answer_from_item" not in vars(aggregate.__globals__["mmbench_evaluator"])


def test_mmbench_reads_an_option_by_its_text(server: JudgeServer, judge: Judge) -> None:
    server.script = [says("A or B"), says("it is an owl")]
    task = load("mmbench_en_dev")
    with judged_by("mmbench_en_dev", task, judge):
        evaluator = aggregation(task, "gpt_eval_score").__globals__["mmbench_evaluator"]
        item = pd.Series({**bench(1, "C"), "prediction": "the flying one"})
        assert evaluator.extract_answer_from_item(item) == ("C", "it is an owl")
    assert len(server.asked) == 2


@every_failure
def test_mmbench_draws_no_option(server: JudgeServer, judge: Judge, arguments: SimpleNamespace, script: Script) -> None:
    server.script = script
    task = load("mmbench_en_dev")
    with judged_by("mmbench_en_dev", task, judge):
        scored = [task.process_results(bench(1, "B"), ["the barking one"])["gpt_eval_score"]]
        with pytest.raises(JudgeError):
            aggregation(task, "gpt_eval_score")(scored, arguments)


# --- all of them -----------------------------------------------------------------------------------------


def test_verdicts_before_a_failure_are_kept(server: JudgeServer, judge: Judge, tmp_path: Path) -> None:
    server.script = [says("0.5"), says("1.0"), fails(500)]
    task = load("mmvet")
    with judged_by("mmvet", task, judge):
        for number in (0, 1):
            task.process_results(vet(number), ["red"])
        with pytest.raises(JudgeError):
            task.process_results(vet(2), ["red"])
    before, server.script = len(server.asked), [says("0.0")]
    again = Judge(server.url, "grader", tmp_path / "judge.jsonl")
    with judged_by("mmvet", task, again):
        scores = [task.process_results(vet(number), ["red"])["gpt_eval_score"]["score"] for number in range(3)]
    assert scores == [0.5, 1.0, 0.0]
    assert len(server.asked) == before + 1
