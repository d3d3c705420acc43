"""Judged tasks: lmms-eval's own scoring code runs, and its calls to a server go through our Judge.

Left alone, lmms-eval scores a call that failed as 0 (MM-Vet), as a "no" (ActivityNet-QA) or as a random option
(MMBench). Here the prompts, the parsing and the sums stay lmms-eval's; only what sends a question is replaced, by a
Judge that either has a verdict which that very code can read, or stops the run.

lmms-eval executes a task's module once for every function that its YAML names, so that each function has globals of
its own: what is replaced is found through the function that will call it.
"""

import copy
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any

from coremat.errors import ConfigError, UnsupportedError
from coremat.tasks.catalogue import TaskInfo
from coremat.tasks.judge import KEY_VARIABLE, NO_KEY, Judge, Messages
from coremat.tasks.judge_calls import asks_judge, scoring_functions
from coremat.undo import replace_method

GRADE_TOKENS = 128  # the lengths of a verdict are those that lmms-eval asks for
REVIEW_TOKENS = 64
OPTION_TOKENS = 256
MOST_SCORE = 5
NO_JUDGE = "task {} is graded by a judge: give --judge-url and --judge-model"


def require_judge(tasks: Iterable[TaskInfo], judge: Judge | None) -> None:
    """ConfigError for the first of these that has no score without a judge, where there is none."""
    for task in tasks:
        if task.needs_judge and judge is None:
            raise ConfigError(NO_JUDGE.format(task.name))


def check_judge(name: str, task: Any, judge: Judge | None) -> None:
    """Whether this lmms-eval task can be scored: it asks nobody, or `judge` can be put in the place of whom it asks."""
    if not asks_judge(task):
        return
    if name not in JUDGED:
        raise UnsupportedError(
            f"task {name} is graded by a judge, and would score a failed call as a wrong answer; "
            f"those that coremat makes safe are {', '.join(JUDGED)}"
        )
    if judge is None:
        raise ConfigError(NO_JUDGE.format(name))


@contextmanager
def judged_by(name: str, task: Any, judge: Judge | None) -> Iterator[None]:
    """For as long as this lasts, the task called `name` in lmms-eval is scored with `judge`, if it asks one."""
    check_judge(name, task, judge)
    with ExitStack() as undo:
        if judge is not None and name in JUDGED:
            JUDGED[name](task, judge, undo)
            _score_once(task, undo)
        yield


def _score_once(task: Any, undo: ExitStack) -> None:
    """lmms-eval scores again when scoring raises, five times, and then tells of its tries and not of the reason."""
    once = getattr(getattr(type(task), "process_results", None), "__wrapped__", None)
    if once is not None:
        replace_method(task, "process_results", partial(once, task), undo)


@contextmanager
def loadable() -> Iterator[None]:
    """An environment in which lmms-eval's judged tasks can be loaded; it is as before afterwards.

    Without a key MM-Vet's client refuses to be made. It gets none that opens anything: lmms-eval is to call nobody.
    Without HF_HOME ActivityNet-QA does not know where videos are. And only "openai" is known to every task.
    """
    from huggingface_hub.constants import HF_HOME

    before = dict(os.environ)
    os.environ.update({KEY_VARIABLE: NO_KEY, "API_TYPE": "openai", "HF_HOME": before.get("HF_HOME") or HF_HOME})
    try:
        yield
    finally:
        for name in (KEY_VARIABLE, "API_TYPE", "HF_HOME"):
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]


def _replace_global(function: FunctionType, name: str, value: Any, undo: ExitStack) -> None:
    undo.callback(function.__globals__.__setitem__, name, function.__globals__[name])
    function.__globals__[name] = value


def _from_user(prompt: str) -> Messages:
    return [{"role": "user", "content": prompt}]


# --- MM-Vet ----------------------------------------------------------------------------------------------


def _attach_mmvet(task: Any, judge: Judge, undo: ExitStack) -> None:
    def get_chat_response(prompt: str, **_: Any) -> tuple[str, str]:
        return judge.ask(_from_user(prompt), GRADE_TOKENS, _is_grade), judge.model

    _replace_global(task.config.process_results, "get_chat_response", get_chat_response, undo)


def _is_grade(verdict: str) -> bool:
    """MM-Vet reads the first word, and asks without end for a number up to 1."""
    try:
        return 0 <= float(verdict.split(" ")[0]) <= 1
    except ValueError:
        return False


# --- questions about videos ------------------------------------------------------------------------------


def video_judge(judge: Judge) -> Callable[[str, str, str], tuple[bool, int]]:
    """Of question, answer and prediction: whether that is right, and its score of 0 to 5, by the Video-ChatGPT protocol
    as lmms-eval has it. Not to be made in a thread: the environment is everybody's."""
    with loadable():
        names = vars(importlib.import_module("lmms_eval.tasks.activitynetqa.utils"))

    def verdict(question: str, answer: str, prediction: str) -> tuple[bool, int]:
        said, score = names["parse_score"](_review(judge, names, question, answer, prediction))
        return said == "yes", score

    return verdict


def _attach_activitynetqa(task: Any, judge: Judge, undo: ExitStack) -> None:
    score = task.config.process_results
    ask = partial(_review, judge, dict(score.__globals__))

    def process_results(doc: Mapping[str, Any], results: list[str], **other: Any) -> Any:
        # lmms-eval takes whatever is raised within for a "no"; here it is not, and there the verdict is known by then
        ask(doc["question"], doc["answer"], results[0])
        return score(doc, results, **other)

    def get_eval(question: str, answer: str, prediction: str, *_: Any) -> tuple[str, str]:
        return ask(question, answer, prediction), judge.model

    _replace_global(score, "get_eval", get_eval, undo)
    replace_method(task.config, "process_results", process_results, undo)


def _review(judge: Judge, names: Mapping[str, Any], question: str, answer: str, prediction: str) -> str:
    """The judge's words; `names` are those of lmms-eval's activitynetqa module."""

    def is_review(text: str) -> bool:
        said, score = names["parse_score"](text) or ("", -1)
        return said in ("yes", "no") and 0 <= score <= MOST_SCORE

    return judge.ask(_review_messages(names, question, answer, prediction), REVIEW_TOKENS, is_review)


def _review_messages(names: Mapping[str, Any], question: str, answer: str, prediction: str) -> Messages:
    """What lmms-eval would post, taken from a copy of its function that posts to a list."""
    posted: list[Messages] = []

    def post(*_: Any, json: Mapping[str, Any], **__: Any) -> Any:
        posted.append(json["messages"])
        reply = {"choices": [{"message": {"content": "heard"}}], "model": ""}
        return SimpleNamespace(raise_for_status=lambda: None, json=lambda: reply)

    around = {**names, "requests": SimpleNamespace(post=post), "API_URL": "", "headers": {}}
    FunctionType(names["get_eval"].__code__, around)(question, answer, prediction, REVIEW_TOKENS, 1)
    return posted[0]


def _attach_video_qa(task: Any, judge: Judge, undo: ExitStack) -> None:
    from coremat.tasks.video_qa.scoring import judged_results

    verdict = video_judge(judge)

    def process_results(doc: Mapping[str, Any], results: list[str]) -> Any:
        # a function, which lmms-eval passes on: it copies whatever else a config holds, and a judge has locks
        return judged_results(verdict, doc, results)

    replace_method(task.config, "process_results", process_results, undo)


# --- MMBench ---------------------------------------------------------------------------------------------


def _attach_mmbench(task: Any, judge: Judge, undo: ExitStack) -> None:
    for function in scoring_functions(task):
        evaluator = function.__globals__["mmbench_evaluator"]
        replace_method(evaluator, "extract_answer_from_item", partial(_extract_answer, evaluator, judge), undo)


def _extract_answer(evaluator: Any, judge: Judge, item: Any) -> tuple[str, str]:
    """The option that an answer means, where its letter cannot be told from its text."""
    choices = evaluator.build_choices(item)
    asking = copy.copy(evaluator)
    asking.get_chat_response = lambda prompt: judge.ask(
        _from_user(prompt), OPTION_TOKENS, lambda verdict: bool(evaluator.can_infer(verdict, dict(choices)))
    )
    return type(evaluator).extract_answer_from_item(asking, item)


JUDGED: dict[str, Callable[[Any, Judge, ExitStack], None]] = {
    "mmvet": _attach_mmvet,
    "activitynetqa": _attach_activitynetqa,
    "mmbench_en_dev": _attach_mmbench,
    "msvd_qa": _attach_video_qa,
    "msrvtt_qa": _attach_video_qa,
}
