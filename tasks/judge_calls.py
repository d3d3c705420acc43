"""Whether lmms-eval would ask a judge for a task's scores, read off the code that scores it.

lmms-eval says nowhere which of its tasks call a server, and those that do score a failed call as a wrong answer. So
the functions that score are followed through all that they name, down to a client of a server. This may find a call
that is never made: what a class or an object has counts as used.
"""

from collections.abc import Callable, Iterator, Set
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

CLIENTS = (
    "openai",
    "lmms_eval.llm_judge",
    "lmms_eval.verifiers.openai",
    "anthropic",
    "aiohttp",
    "httpx",
    "google.genai",
    "google.generativeai",
)
POSTING = {"requests", "post"}  # the module alone also fetches images
ASKS_NOBODY = ("mmbench_en_dev_static",)  # shares its class with mmbench_en_dev, and tells it to make no calls


def asks_judge(task: Any) -> bool:
    """Whether the scores of this lmms-eval task (all that is read is its `config`) come from a server."""
    if getattr(task.config, "task", None) in ASKS_NOBODY:
        return False
    return any(_reaches_client(function) for function in scoring_functions(task))


def scoring_functions(task: Any) -> list[Any]:
    """What turns a task's answers into scores: sample by sample, and all together."""
    metrics = task.config.metric_list or []
    found = [task.config.process_results, *(one.get("aggregation") for one in metrics)]
    return [one for one in found if callable(one)]


def _reaches_client(start: Callable) -> bool:
    waiting: list[Any] = [start]
    homes = {_lmms_eval_folder()} | ({_file(start).parent} if isinstance(start, FunctionType) else set())
    seen: set[Any] = set()
    while waiting:
        value = waiting.pop()
        if _is_client(_module(value)):
            return True
        same = value.__code__ if isinstance(value, FunctionType) else id(value)  # lmms-eval loads a module many times
        if same in seen:
            continue
        seen.add(same)
        if isinstance(value, FunctionType) and _is_within(value, homes):
            names = _names(value.__code__)
            if names >= POSTING or any(map(_is_client, names)):
                return True
            waiting.extend(_used(value, names))
        else:
            waiting.extend(_had(value, homes))
    return False


def _lmms_eval_folder() -> Path:
    import lmms_eval

    return Path(lmms_eval.__path__[0])


def _file(function: FunctionType) -> Path:
    return Path(function.__code__.co_filename)


def _is_within(function: FunctionType, homes: Set[Path]) -> bool:
    """Whether lmms-eval or the task wrote it: other libraries are not entered."""
    return any(map(_file(function).is_relative_to, homes))


def _is_client(module: str) -> bool:
    return any(module == client or module.startswith(client + ".") for client in CLIENTS)


def _module(value: Any) -> str:
    if isinstance(value, ModuleType):
        return value.__name__
    owner = value if isinstance(value, (type, FunctionType)) else type(value)
    return str(owner.__module__)


def _names(code: CodeType) -> set[str]:
    """All that the code names: globals, attributes, modules that it imports; with the functions inside it."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _used(function: FunctionType, names: Set[str]) -> Iterator[Any]:
    """The globals that a function names, what it names in those that are modules, and what it encloses."""
    for value in (function.__globals__[name] for name in names if name in function.__globals__):
        yield value
        if isinstance(value, ModuleType):
            yield from (vars(value)[name] for name in names if name in vars(value))
    yield from (cell.cell_contents for cell in function.__closure__ or ())


def _had(value: Any, homes: Set[Path]) -> Iterator[Any]:
    """What comes with a value that is no function of lmms-eval's or the task's."""
    if isinstance(value, (partial, MethodType, staticmethod, classmethod)):
        yield value.func if isinstance(value, partial) else value.__func__
    elif isinstance(value, (dict, list, tuple)):
        yield from filter(callable, value.values() if isinstance(value, dict) else value)
    elif not isinstance(value, ModuleType):
        kinds = (value if isinstance(value, type) else type(value)).__mro__
        methods = [method for kind in kinds for method in vars(kind).values() if isinstance(method, FunctionType)]
        if any(_is_within(method, homes) for method in methods):
            yield from (part for kind in kinds for part in vars(kind).values())
            yield from getattr(value, "__dict__", {}).values()
