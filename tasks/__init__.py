"""What can be evaluated: the bundled tasks, and all of lmms-eval's under their names there.

The answers' way from a question to a record is in `runner`; here is only which tasks there are, so that a name
can be checked before anything heavy is imported.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from coremat.errors import UnknownNameError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class TaskInfo:
    """An lmms-eval task: the folder of its YAML, its metrics (the first one first; none: as its YAML has them).

    scale: what a metric is multiplied by to be per cent; None: told from its values.
    paper: the column of the paper's tables that it reproduces.
    """

    name: str
    summary: str
    folder: Path
    metrics: tuple[str, ...] = ()
    scale: float | None = None
    paper: str | None = None


_SHAPES = (HERE / "shapes", ("accuracy", "listing_f1"), 100.0)
_BUNDLED = (
    TaskInfo("easyvqa", "easy-VQA, test: 9,673 questions on single shapes", HERE / "easyvqa", ("accuracy",), 100.0),
    TaskInfo("shapes", "scenes of two to four objects, test: 2,400 questions of eight kinds", *_SHAPES),
    TaskInfo("shapes_validation", "the same, validation: 1,200 questions", *_SHAPES),
)
TASKS: Mapping[str, TaskInfo] = MappingProxyType({task.name: task for task in _BUNDLED})

_NAME = re.compile(r"^(?:task|group)[ \t]*:[ \t]*[\"']?([\w.-]+)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE)


def resolve_task(name: str) -> TaskInfo:
    """The task of this name, bundled or lmms-eval's. UnknownNameError with the nearest name."""
    if name in TASKS:
        return TASKS[name]
    folders = lmms_eval_tasks()
    if name not in folders:
        raise UnknownNameError("task", name, (*TASKS, *sorted(folders)))
    return TaskInfo(name, "from lmms-eval", folders[name])


@cache
def lmms_eval_tasks() -> Mapping[str, Path]:
    """The folder of every task and group of lmms-eval, read off its YAML files without loading them: 0.2 s."""
    spec = find_spec("lmms_eval")
    roots = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    files = (path for root in roots for path in (Path(root) / "tasks").rglob("*.yaml"))
    return {name: path.parent for path in files for name in _NAME.findall(path.read_text(encoding="utf-8"))}
