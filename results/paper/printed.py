"""The eight tables of the paper as data.

Wang et al., CoreMatching, ICML 2025. The numbers are in `paper/table*.csv`, as printed; `paper_tables` lays beside
them what was measured here.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import pandas

from coremat.errors import UnknownNameError

SOURCE = "Wang et al., CoreMatching, ICML 2025"
PAPER = "paper"
RATIO_TABLE = 1  # accuracy by the share of neurons kept, of a task that the paper does not name
COST_TABLE = 3  # memory and time, which a bench measures and an evaluation does not
VIDEO_TABLE = 6  # says the size of a model and not its name

TITLES = {
    1: "Accuracy by the share of neurons kept",
    2: "Ten image tasks",
    3: "Memory and time on a Titan Xp",
    4: "Documents and charts",
    5: "Qwen2.5-VL on documents and charts",
    6: "Video questions",
    7: "Core tokens by task",
    8: "Llama-3.2-11B-Vision on core neurons",
}

_FLOPS = (
    "paper, TFLOPs: no convention given; 2*MAC of the decoder alone gives 10.1 and 19.6 for a prompt of 755 tokens."
)
_TRAINED = "{}: trained by their authors, into weights that no patch of a checkpoint gives; the paper's rows only."
_NOTES = {
    1: ("task: of the measured rows; the paper's table has one accuracy.",),
    2: (_FLOPS, _TRAINED.format("voco-llama, dynamic-llava")),
    3: (
        _FLOPS,
        "paper, decode TFLOPs: printed as GFLOPs; by arithmetic 0.845 is TFLOP: 64 new tokens on 6.6 billion weights.",
        "An evaluation adds nothing to this table; a bench record does, one prompt at a time.",
        _TRAINED.format("dynamic-llava"),
        "powerinfer: the paper emulates its time; ours beside it are powerinfer (its time) and predictor (trained).",
    ),
    4: (_FLOPS,),
    6: ("model: of the measured rows; the paper's table has sizes.",),
}

# Columns that say which row it is; the others hold numbers.
TEXT_COLUMNS = frozenset(
    ("source", "model", "method", "size", "task", "device", "training_free", "neuron_sparse", "token_sparse")
)
# Columns of the paper that are no task, and the field of a record's row that measures the same.
COST_COLUMNS = {
    "image_tokens": "image_tokens_kept",
    "visual_tokens": "image_tokens_kept",
    "neurons": "neurons_kept",
    "prefill_tflops": "prefill_tflops",
}


@dataclass(frozen=True, eq=False)
class PaperTable:
    """A table of the paper: `frame` holds its numbers (NaN where it has none), `printed` its cells as printed
    ("" where it has none)."""

    number: int
    title: str
    source: str
    frame: pandas.DataFrame
    printed: tuple[Mapping[str, str], ...]
    notes: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        return list(self.frame.columns)

    @property
    def tasks(self) -> list[str]:
        """The columns that belong to one task each: none in Tables 1 and 3."""
        if self.number in (RATIO_TABLE, COST_TABLE):
            return []
        return [name for name in self.columns if name not in TEXT_COLUMNS and name not in COST_COLUMNS]


def paper_table(number: int) -> PaperTable:
    """Table 1 to 8 of the paper. UnknownNameError for another number."""
    if number not in TITLES:
        raise UnknownNameError("table of the paper", number, TITLES)
    printed = _read_printed(number)
    frame = pandas.DataFrame(printed, dtype=object)
    for name in frame.columns.difference(list(TEXT_COLUMNS)):
        frame[name] = pandas.to_numeric(frame[name])
    return PaperTable(number, TITLES[number], f"{SOURCE}, Table {number}", frame, printed, _NOTES.get(number, ()))


@cache
def _read_printed(number: int) -> tuple[Mapping[str, str], ...]:
    folder = resources.files("coremat.results").joinpath("paper")
    (file,) = (one for one in folder.iterdir() if one.name.startswith(f"table{number}_"))
    return tuple(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
