"""A table of a mirror: one split of one dataset, with the columns and types that it has on the hub.

Columns that no task reads are there too, so that code which reads them by mistake, or needs them gone, meets them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Features, Image, List, Value
from mirrors_questions import QUESTIONS, Asked, picture

HUB = "lmms-lab-encoder"
TEXT, TEXTS, PICTURE = Value("string"), List(Value("string")), Image()
Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """One split of one config of a dataset; a dataset without configs has the one named default, in data/."""

    repo: str
    split: str
    features: Features
    rows: Sequence[Row]
    config: str = "default"

    @property
    def place(self) -> str:
        folder = "data" if self.config == "default" else self.config
        return f"{folder}/{self.split}-00000-of-00001.parquet"


def texts(*names: str) -> dict[str, Value]:
    return dict.fromkeys(names, TEXT)


def filled(features: Features, row: Row) -> Row:
    """With something in the columns that the row leaves out."""
    blank = {"string": "-", "bool": True}
    return {
        name: row[name] if name in row else [] if isinstance(kind, List) else blank.get(kind.dtype, 0)
        for name, kind in features.items()
    }


def table(
    repo: str, split: str, columns: Mapping[str, Any], rows: Sequence[Row], config: str = "default"
) -> list[Table]:
    """All that is mirrored of most datasets."""
    features = Features(dict(columns))
    every = [filled(features, row) for row in rows]
    return [Table(repo if "/" in repo else f"{HUB}/{repo}", split, features, every, config)]


def shown(one: Asked) -> Any:
    return picture(one.pictures[0])


def of_each(name: str, row: Callable[[int, Asked], Row]) -> list[Row]:
    return [row(number, one) for number, one in enumerate(QUESTIONS[name])]
