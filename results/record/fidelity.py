"""The record of `coremat fidelity` as `DIR/record.json`: how near methods are to the dense model, what they save."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from coremat.errors import RecordError
from coremat.results.record.eval import (
    StoredRecord,
    plain_number,
    read_entries,
    read_field,
)


@dataclass(frozen=True, kw_only=True)
class FidelityRow:
    """One method on the questions of one source (a task, a file of prompts, a folder of images). `None`: not measured.

    questions: with an answer of the dense model, of `tokens` positions in all. kl, nll: nats per token; agreement: per
    cent of the tokens; first_difference: the position, from 0, at which decoding freely leaves the dense answer, as a
    mean over questions in which an answer that never does counts with its whole length; same_share: per cent of the
    questions that never do. Every `_se` is a standard error over questions. The costs are means over questions, as in
    an evaluation's `Row`.

    by_position: lists over the positions 0, 1, ... of the answers, under "questions" (whose answers reach so far),
    "kl", "kl_se", "agreement", "agreement_se", "nll", "nll_se", and "same", "same_se": per cent of those questions that
    decoding freely has not left up to there, this position included.
    """

    method: str
    source: str
    questions: int
    tokens: int
    kl: float | None = None
    kl_se: float | None = None
    agreement: float | None = None
    agreement_se: float | None = None
    nll: float | None = None
    nll_se: float | None = None
    first_difference: float | None = None
    first_difference_se: float | None = None
    same_share: float | None = None
    same_share_se: float | None = None
    prompt_tokens: float | None = None
    image_tokens: float | None = None
    image_tokens_kept: float | None = None
    neurons: float | None = None
    neurons_kept: float | None = None
    ffn_read_mib: float | None = None
    prefill_tflops: float | None = None
    kv_cache_mib: float | None = None
    by_position: Mapping[str, list[float | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Plain numbers only; RecordError for a field of the wrong type."""
        for name in TEXT_FIELDS:
            if not isinstance(getattr(self, name), str):
                raise RecordError(f"{name} is {getattr(self, name)!r}, and must be a text")
        for name in NUMBER_FIELDS:
            object.__setattr__(self, name, plain_number(name, getattr(self, name)))
        for name in COUNT_FIELDS:
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise RecordError(f"{name} is {getattr(self, name)!r}, and must be a whole number from 0")
        lists = self.by_position.values() if isinstance(self.by_position, Mapping) else [None]
        if not all(isinstance(one, list) and all(map(_is_number_or_none, one)) for one in lists):
            raise RecordError("by_position must be an object of lists of numbers")
        if len({len(one) for one in lists}) > 1:
            raise RecordError("the lists of by_position must be of one length")


TEXT_FIELDS = ("method", "source")
COUNT_FIELDS = ("questions", "tokens")
ROW_FIELDS = tuple(one.name for one in fields(FidelityRow))
NUMBER_FIELDS = tuple(name for name in ROW_FIELDS if name not in (*TEXT_FIELDS, "by_position"))


def _is_number_or_none(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (number and math.isfinite(value))


@dataclass(frozen=True)
class FidelityRecord(StoredRecord):
    """What one `coremat fidelity` measured: `rows`, under which `config`, in which `environment` (both plain JSON).

    Of config the tables read methods (`record.methods`), sources, new_tokens, skipped (why, for each method that the
    model cannot run), broken (each question that could not be asked: source, doc_id, reason, and method where it is
    that method's alone), flops_convention and prompt_tokens.
    """

    kind: ClassVar[str] = "fidelity"
    model: str
    rows: tuple[FidelityRow, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, path: Path, document: Mapping[str, Any]) -> "FidelityRecord":
        """The record that a document read from `path` holds."""
        return cls(
            model=read_field(path, document, "model", str),
            rows=read_entries(path, document, "rows", FidelityRow, ROW_FIELDS),
            config=read_field(path, document, "config", dict),
            environment=read_field(path, document, "environment", dict),
        )
