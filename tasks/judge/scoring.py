"""Judged tasks: lmms-eval's own scoring code runs, and its calls to a server go through our Judge.

Left alone, lmms-eval scores a call that failed as 0 (MM-Vet), as a "no" (ActivityNet-QA) or as a random option
(MMBench). Here the prompts, the parsing and the sums stay lmms-eval's; only what sends a question is replaced, by a
Judge that either has a verdict which that very code can read, or stops the run.

lmms-eval executes a task's module once for every function that its YAML names, so that each function has globals of
its own: what is replaced is found through the function that will call it.
"""

import copy
import os
import runpy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from json import dumps, loads
from types import FunctionType, SimpleNamespace
from typing import Any

from coremat.errors import ConfigError, UnsupportedError
from coremat.hooks import Hooks
from coremat.tasks.catalogue import TaskInfo
from coremat.tasks.judge.client import KEY_VARIABLE, NO_KEY, Judge, Messages
from coremat.tasks.judge.no_network import NetworkTried, no_network

GRADE_TOKENS = 128  # the lengths of a verdict are those that lmms-eval asks for
REVIEW_TOKENS = 64
OPTION_TOKENS = 256
MOST_SCORE = 5
NO_JUDGE = "task {} is graded by a judge: give --judge-url and --judge-model"
ASKS_SERVER = (
    "task {} asks {} for its scores, and would score a failed call as a wrong answer; --judge-url and --judge-model "
    "serve {}; the answers are kept"
)


def require_judge(tasks: Iterable[TaskInfo], judge: Judge | None) -> None:
    """ConfigError for the first of these that has no score without a judge, where there is none."""
    for task in tasks:
        if task.needs_judge and judge is None:
            raise ConfigError(NO_JUDGE.format(task.name))


def check_judge(name: str, judge: Judge | None) -> None:
    """ConfigError where the task called `name` in lmms-eval has no score without a judge, and there is none."""
    if judge is None and name in JUDGED and name not in SCORED_ALONE_TOO:
        raise ConfigError(NO_JUDGE.format(name))


@contextmanager
def judged_by(name: str, task: Any, judge: Judge | None) -> Iterator[None]:
    """For as long as this lasts, the task called `name` in lmms-eval is scored with `judge`, or without any server.

    UnsupportedError for a task that asks a server where there is no judge to put in its place.
    """
    check_judge(name, judge)
    if judge is None or name not in JUDGED:
        with _scored_alone(name, task):
            yield
        return
    hooks = Hooks()
    try:
        JUDGED[name](task, judge, hooks)
        _score_once(task, hooks)
        yield
    finally:
        hooks.restore()


@contextmanager
def _scored_alone(name: str, task: Any) -> Iterator[None]:
    """lmms-eval says nowhere which tasks call a server: a call is found when it is made. Images may come from one, so
    the network is shut when the answers are there, which lmms-eval then filters and scores."""
    with ExitStack() as stack:
        hooks, tried = Hooks(), list[str]()
        stack.callback(hooks.restore)
        filter_answers = task.apply_filters

        def begin_scoring() -> Any:
            stack.enter_context(loadable())
            stack.enter_context(no_network(tried))
            return filter_answers()

        hooks.replace(task, "apply_filters", begin_scoring)
        try:
            yield
        except (Exception, NetworkTried):
            if not tried:
                raise
    if tried:
        raise UnsupportedError(ASKS_SERVER.format(name, tried[0], ", ".join(JUDGED)))


def _score_once(task: Any, hooks: Hooks) -> None:
    """lmms-eval scores again when scoring raises, five times, and then tells of its tries and not of the reason."""
    once = getattr(getattr(type(task), "process_results", None), "__wrapped__", None)
    if once is not None:
        hooks.replace(task, "process_results", partial(once, task))


@contextmanager
def loadable() -> Iterator[None]:
    """An environment in which lmms-eval's judged tasks can be loaded; it is as before afterwards.

    Without a key a client refuses to be made: MM-Vet's as it is loaded, others' as they score, which then comes to
    nothing before anybody is called. They get none that opens anything: lmms-eval is to call nobody.
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


def _replace_global(function: FunctionType, name: str, value: Any, hooks: Hooks) -> None:
    old = function.__globals__[name]
    hooks.on_restore(lambda: function.__globals__.__setitem__(name, old))
    function.__globals__[name] = value


def _from_user(prompt: str) -> Messages:
    return [{"role": "user", "content": prompt}]


# --- MM-Vet ----------------------------------------------------------------------------------------------


def _attach_mmvet(task: Any, judge: Judge, hooks: Hooks) -> None:
    def get_chat_response(prompt: str, **_: Any) -> tuple[str, str]:
        return judge.ask(_from_user(prompt), GRADE_TOKENS, _is_grade), judge.model

    _replace_global(task.config.process_results, "get_chat_response", get_chat_response, hooks)


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
    names = _activitynetqa()

    def verdict(question: str, answer: str, prediction: str) -> tuple[bool, int]:
        said, score = names["parse_score"](_review(judge, names, question, answer, prediction))
        return said == "yes", score

    return verdict


def _attach_activitynetqa(task: Any, judge: Judge, hooks: Hooks) -> None:
    score = task.config.process_results
    ask = partial(_review, judge, _activitynetqa())

    def process_results(doc: Mapping[str, Any], results: list[str], **other: Any) -> Any:
        # lmms-eval takes whatever is raised within for a "no"; here it is not, and there the verdict is known by then
        ask(doc["question"], doc["answer"], results[0])
        return score(doc, results, **other)

    def get_eval(question: str, answer: str, prediction: str, *_: Any) -> tuple[str, str]:
        return ask(question, answer, prediction), judge.model

    _replace_global(score, "get_eval", get_eval, hooks)
    hooks.replace(task.config, "process_results", process_results)


def _activitynetqa() -> dict[str, Any]:
    """The names of lmms-eval's module, run anew: here what posts a question gets it back for an answer."""
    with loadable():
        names = runpy.run_module("lmms_eval.tasks.activitynetqa.utils")
    names["requests"] = SimpleNamespace(post=_echo)
    return names


def _echo(*_: Any, json: Mapping[str, Any], **__: Any) -> Any:
    """In the place of `requests.post`: a chat server whose answer is the question."""
    reply = {"choices": [{"message": {"content": dumps(json["messages"])}}], "model": "echo"}
    return SimpleNamespace(raise_for_status=lambda: None, json=lambda: reply)


def _review(judge: Judge, names: Mapping[str, Any], question: str, answer: str, prediction: str) -> str:
    """The judge's words on the messages that lmms-eval makes, in a form that it can read."""

    def is_review(text: str) -> bool:
        said, score = names["parse_score"](text) or ("", -1)
        return said in ("yes", "no") and 0 <= score <= MOST_SCORE

    messages, _ = names["get_eval"](question, answer, prediction, REVIEW_TOKENS)
    return judge.ask(loads(messages), REVIEW_TOKENS, is_review)


def _attach_video_qa(task: Any, judge: Judge, hooks: Hooks) -> None:
    from coremat.tasks.bundled.video_qa.scoring import judged_results

    verdict = video_judge(judge)

    def process_results(doc: Mapping[str, Any], results: list[str]) -> Any:
        # a function, which lmms-eval passes on: it copies whatever else a config holds, and a judge has locks
        return judged_results(verdict, doc, results)

    hooks.replace(task.config, "process_results", process_results)


# --- MMBench ---------------------------------------------------------------------------------------------


def _attach_mmbench(task: Any, judge: Judge, hooks: Hooks) -> None:
    for metric in task.config.metric_list:
        evaluator = metric["aggregation"].__globals__["mmbench_evaluator"]
        hooks.replace(evaluator, "extract_answer_from_item", partial(_extract_answer, evaluator, judge))


def _extract_answer(evaluator: Any, judge: Judge, item: Any) -> tuple[str, str]:
    """The option that an answer means, where its letter cannot be told from its text."""
    choices = evaluator.build_choices(item)
    asking = copy.copy(evaluator)
    asking.get_chat_response = lambda prompt: judge.ask(
        _from_user(prompt), OPTION_TOKENS, lambda verdict: bool(evaluator.can_infer(verdict, dict(choices)))
    )
    return type(evaluator).extract_answer_from_item(asking, item)


JUDGED: dict[str, Callable[[Any, Judge, Hooks], None]] = {
    "mmvet": _attach_mmvet,
    "activitynetqa": _attach_activitynetqa,
    "mmbench_en_dev": _attach_mmbench,
    "msvd_qa": _attach_video_qa,
    "msrvtt_qa": _attach_video_qa,
}
SCORED_ALONE_TOO = ("msvd_qa", "msrvtt_qa")  # by exact match
