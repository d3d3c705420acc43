"""Presets: the tasks of one of the paper's tables, and those of its methods that coremat has, as one would type them.

A rival has the budget of image tokens that the paper printed for the model; CoreMatching finds its own. Table 6 prints
no budgets, so each method there has its own. Tables 1 and 3 are of no task that the paper names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from coremat.errors import ConfigError, UnknownNameError
from coremat.methods.registry import modules, parse
from coremat.models.known import KNOWN_MODELS, known_name
from coremat.names import DENSE
from coremat.results.paper.printed import VIDEO_TABLE, PaperTable, paper_table
from coremat.tasks.catalogue import TASKS

PRESETS: Mapping[str, int] = MappingProxyType({f"paper-table-{number}": number for number in (2, 4, 5, 6, 7, 8)})
VIDEO_MODEL = "video-llava-7b"
VIDEO_DENSE = "video-llava"  # Table 6 calls the unchanged model by its own name
COLUMN_TASKS = {column: task.name for task in TASKS.values() for column in task.columns.values()}


@dataclass(frozen=True)
class Preset:
    """Names of tasks, and methods as typed."""

    tasks: tuple[str, ...]
    methods: tuple[str, ...]


def preset_of(name: str, model: str) -> Preset:
    """What a preset means for a model, as users name it. UnknownNameError for the name, ConfigError for the model."""
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    table = paper_table(PRESETS[name])
    rows = _rows(table, known_name(model))
    if not rows:
        raise ConfigError(
            f"model is {model!r}; accepted with preset {name}: {', '.join(models_in(table))}; "
            "for others give --tasks and --methods."
        )
    methods = filter(None, map(_typed, rows))
    tasks = (COLUMN_TASKS[column] for column in table.tasks)
    return Preset(tuple(dict.fromkeys(tasks)), tuple(dict.fromkeys(methods)))


def models_in(table: PaperTable) -> list[str]:
    """The models that a table of the paper has and coremat knows."""
    if table.number == VIDEO_TABLE:
        return [VIDEO_MODEL]
    return [name for name in dict.fromkeys(row["model"] for row in table.printed) if name in KNOWN_MODELS]


def _rows(table: PaperTable, model: str) -> list[Mapping[str, str]]:
    known = model in models_in(table)
    return [row for row in table.printed if known and row.get("model", model) == model]


def _typed(row: Mapping[str, str]) -> str | None:
    """A row's method as typed; None for one that coremat has not."""
    name = DENSE if row["method"] == VIDEO_DENSE else row["method"]
    if name not in modules():
        return None
    method, budget = parse(name), row.get("image_tokens")
    given = budget and method.prunes_tokens and not method.prunes_neurons
    return f"{name}:tokens={budget}" if given else name
