"""The run record: what one evaluation measured, as `DIR/record.json`, and its answers in `DIR/samples.jsonl`.

Other tools read both files, so the names in `Row` are fixed for `SCHEMA`: a field that is added or that
changes its name or meaning raises it. What was written under an older schema is read under the names of today.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from coremat.errors import OutputError, RecordError
from coremat.results.record.methods import config_of_schema_1

if TYPE_CHECKING:
    import pandas

SCHEMA = 3
RECORD_FIELDS = ("schema", "kind", "model", "rows", "config", "environment")
JSON_NAMES: Mapping[type, str] = {int: "a whole number", str: "a text", list: "a list", dict: "an object"}
RECORD_FILE = "record.json"
SAMPLES_FILE = "samples.jsonl"

Entry = TypeVar("Entry")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one task. `None`: not measured. Counts are means over samples, times are medians.

    score, stderr: per cent; MME's in points, a judge's scores of answers on videos from 0 to 5, and those of which
    `Record.has_own_scale` says so as lmms-eval gave them.
    agreement_with_dense: per cent. hard_score: per cent, on the hard_samples questions that dense gets right and the
    downsampled model (`config["hard_by"]`) wrong. image_tokens: seen, of which image_tokens_kept.
    neurons: FFN neurons of a decoder layer, of which neurons_kept. ffn_read_mib: what one new token reads of the
    weights of all FFNs, with what the method adds in order to choose. kv_cache_mib: after prefill, all layers.
    first_token_ms: from the start of `generate` until the scores of the first new token are there, vision tower
    included, divided by the rows of the batch; it is not a bench's prefill, which is the decoder's, of the whole batch.
    """

    method: str
    task: str
    metric: str
    score: float | None = None
    stderr: float | None = None
    samples: int
    image_tokens: float | None = None
    image_tokens_kept: float | None = None
    neurons: float | None = None
    neurons_kept: float | None = None
    ffn_read_mib: float | None = None
    prefill_tflops: float | None = None
    kv_cache_mib: float | None = None
    first_token_ms: float | None = None
    decode_ms_per_token: float | None = None
    selection_ms: float | None = None
    agreement_with_dense: float | None = None
    hard_score: float | None = None
    hard_samples: float | None = None

    def __post_init__(self) -> None:
        """Plain numbers only; RecordError for a field of the wrong type."""
        for name in TEXT_FIELDS:
            if not isinstance(getattr(self, name), str):
                raise RecordError(f"{name} is {getattr(self, name)!r}, and must be a text")
        for name in NUMBER_FIELDS:
            object.__setattr__(self, name, plain_number(name, getattr(self, name)))
        if not isinstance(self.samples, int) or self.samples < 0:
            raise RecordError(f"samples is {self.samples!r}, and must be a whole number from 0")


ROW_FIELDS = tuple(one.name for one in fields(Row))
TEXT_FIELDS = ("method", "task", "metric")
NUMBER_FIELDS = tuple(name for name in ROW_FIELDS if name not in TEXT_FIELDS)
SCHEMA_3_FIELDS = ("ffn_read_mib", "hard_score", "hard_samples")
SCHEMA_2_FIELDS = tuple(name for name in ROW_FIELDS if name not in SCHEMA_3_FIELDS)
SCHEMA_1_FIELDS = tuple("prefill_ms" if name == "first_token_ms" else name for name in SCHEMA_2_FIELDS)


def _row_of_schema_1(prefill_ms: Any, **others: Any) -> Row:
    """The same time under its first name, which a bench's records have for another one."""
    return Row(first_token_ms=prefill_ms, **others)


ROWS_BY_SCHEMA: Mapping[int, tuple[Callable[..., Row], tuple[str, ...]]] = {
    1: (_row_of_schema_1, SCHEMA_1_FIELDS),
    2: (Row, SCHEMA_2_FIELDS),
    SCHEMA: (Row, ROW_FIELDS),
}
CONFIG_BY_SCHEMA: Mapping[int, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    1: config_of_schema_1,
    2: dict,
    SCHEMA: dict,
}


def plain_number(name: str, value: Any) -> float | None:
    """A plain int or float; a mean over nothing (NaN) or an infinity was not measured: None."""
    value = value.item() if hasattr(value, "item") else value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RecordError(f"{name} is {value!r}, and must be a number or null")
    return value if math.isfinite(value) else None


Read = TypeVar("Read", bound="StoredRecord")


@dataclass(frozen=True)
class StoredRecord:
    """What records of all kinds share: plain JSON, in a `record.json` of its `kind`."""

    kind: ClassVar[str]

    @classmethod
    def read(cls: type[Read], where: str | os.PathLike[str]) -> Read:
        """The record in a file, or in the folder of a run. RecordError says what is wrong with it."""
        path = record_path(where)
        return cls.parse(path, read_document(path, cls.kind))

    @classmethod
    def parse(cls: type[Read], path: Path, document: Mapping[str, Any]) -> Read:
        """The record that a document read from `path` holds."""
        raise NotImplementedError

    def write(self, directory: str | os.PathLike[str]) -> Path:
        """Write `directory/record.json` and return its path. OutputError if that cannot be done."""
        content = {one.name: _plain(getattr(self, one.name)) for one in fields(self)}
        return write_document(directory, self.kind, content)


def _plain(value: Any) -> Any:
    """A field of a record as JSON has it: rows as objects, settings and the model's name as they are."""
    if isinstance(value, tuple):
        return [asdict(row) for row in value]
    return dict(value) if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class Record(StoredRecord):
    """What one `coremat eval` measured: `rows`, under which `config`, in which `environment` (both plain JSON)."""

    kind: ClassVar[str] = "eval"
    model: str
    rows: tuple[Row, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, path: Path, document: Mapping[str, Any]) -> "Record":
        """The record that a document read from `path` holds."""
        return cls(
            model=read_field(path, document, "model", str),
            rows=read_entries(path, document, "rows", *ROWS_BY_SCHEMA[document["schema"]]),
            config=CONFIG_BY_SCHEMA[document["schema"]](read_field(path, document, "config", dict)),
            environment=read_field(path, document, "environment", dict),
        )

    def has_own_scale(self, task: str, metric: str) -> bool:
        """Whether these scores are on lmms-eval's own scale, which coremat does not know: 0 to 1, to 100 or to more."""
        return metric in self.config.get("own_scale", {}).get(task, ())


def write_document(directory: str | os.PathLike[str], kind: str, content: Mapping[str, Any]) -> Path:
    """Write `directory/record.json`, a record of this `kind`; return its path. OutputError if that cannot be done."""
    document = {"schema": SCHEMA, "kind": kind, **content}
    text = json.dumps(document, indent=1, default=str, allow_nan=False)
    return write_text_atomic(Path(directory) / RECORD_FILE, text + "\n")


def record_path(where: str | os.PathLike[str]) -> Path:
    """The record file that is meant by itself or by its folder."""
    path = Path(where)
    return path / RECORD_FILE if path.is_dir() else path


def read_document(path: Path, *kinds: str) -> dict[str, Any]:
    """A record file as parsed JSON, once it is known to be a record of one of these `kinds`, of a schema known here."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise RecordError(f"cannot read the record {path}: {error.strerror}") from error
    except ValueError as error:
        raise RecordError(f"{path} is not a record: it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise RecordError(f"{path} is not a record: it holds {_found(document)} where an object is needed")
    schema = read_field(path, document, "schema", int)
    if schema not in ROWS_BY_SCHEMA:
        advice = ": update coremat" if schema > SCHEMA else ""
        known = f"1 to {SCHEMA}"
        raise RecordError(f"{path} has schema {schema}, and this coremat reads schemas {known}{advice}")
    found = read_field(path, document, "kind", str)
    if found not in kinds:
        needed = " or ".join(map(repr, kinds))
        raise RecordError(f"{path} is a record of kind {found!r}, and one of kind {needed} is needed here")
    return document


def read_field(path: Path, document: Mapping[str, Any], name: str, kind: type) -> Any:
    """A field of a record file, known to be a `kind`."""
    if name not in document:
        needed = ", ".join(RECORD_FIELDS)
        raise RecordError(f"{path} lacks the field {name!r}; a record has {needed} (a bench also memory)")
    value = document[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RecordError(f"{path}: {name!r} is {_found(value)}, and must be {JSON_NAMES[kind]}")
    return value


def _found(value: Any) -> str:
    """A JSON value as an error message shows it."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]} ..."


def read_entries(
    path: Path, document: Mapping[str, Any], name: str, build: Callable[..., Entry], names: Sequence[str]
) -> tuple[Entry, ...]:
    """The list `name` of a record file, each entry built from its fields `names`; errors say which entry it is."""
    entries = read_field(path, document, name, list)
    noun = name.removesuffix("s")
    return tuple(_read_entry(path, f"{noun} {nth}", entry, build, names) for nth, entry in enumerate(entries, 1))


def _read_entry(path: Path, which: str, entry: Any, build: Callable[..., Entry], names: Sequence[str]) -> Entry:
    """Keys that are not among `names` are left out: they cannot change the meaning of those that are."""
    if not isinstance(entry, dict):
        raise RecordError(f"{path}: {which} is {_found(entry)}, and must be an object")
    missing = [name for name in names if name not in entry]
    if missing:
        raise RecordError(f"{path}: {which} lacks {', '.join(missing)}; null stands for what was not measured")
    try:
        return build(**{name: entry[name] for name in names})
    except RecordError as error:
        raise RecordError(f"{path}: {which}: {error}") from error


def read_samples(directory: str | os.PathLike[str]) -> "pandas.DataFrame":
    """The answers in `directory/samples.jsonl`, up to the last whole line: a killed run may have cut one short."""
    import pandas

    path = Path(directory) / SAMPLES_FILE
    try:
        whole, _, _ = path.read_bytes().rpartition(b"\n")
    except OSError as error:
        raise RecordError(f"cannot read the answers {path}: {error.strerror}") from error
    lines = enumerate(whole.split(b"\n"), 1)
    return pandas.DataFrame([_read_sample(path, number, line) for number, line in lines if line])


def _read_sample(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        sample = json.loads(line)
    except ValueError as error:
        raise RecordError(f"{path}: line {number} is not JSON ({error})") from error
    if not isinstance(sample, dict):
        raise RecordError(f"{path}: line {number} is {_found(sample)}, and must be an object")
    return sample


def write_text_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """`write_atomic` of text in UTF-8, with its line ends as they are."""
    return write_atomic(path, text.encode())


def write_atomic(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file whole or not at all, making its folder; return its path.

    The data is on the disk under another name before it takes the place of an older file, so that a full
    disk or a kill leaves that one as it was. OutputError names the path.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    return path
