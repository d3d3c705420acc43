"""The tables of a fidelity run: methods side by side, and position by position for other programs."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coremat.results.record.eval import write_text_atomic
from coremat.results.record.fidelity import ROW_FIELDS, FidelityRecord, FidelityRow
from coremat.results.tables.eval import (
    NAMED,
    Column,
    Table,
    count,
    fixed,
    significant,
    skipped_notes,
    to_csv,
    to_latex,
    to_markdown,
)

SHOWN = ("kl", "agreement", "nll", "same")  # of each position
RAW = tuple(name for name in ROW_FIELDS if name != "by_position")
NOTE = (
    "Every method was made to follow the dense model's own greedy answer, in the decode path that it really takes. "
    "KL: KL(dense || method) per token, in nats, over the whole vocabulary; agree: tokens for which both hold the same "
    "one for the most probable; NLL: of the dense answer, per token, in nats; first diff: the position, from 0, at "
    "which decoding freely leaves the dense answer, the answer's length where it never does; same: answers that it "
    "never leaves."
)
ERRORS = (
    "±: standard error over questions; the tokens of one answer are no independent samples. Costs are means over "
    "questions: image tokens seen → kept; neurons per decoder layer; KV after the prefill, of all layers."
)


def fidelity_table(record: FidelityRecord) -> Table:
    """The methods side by side, source by source."""
    columns = [column for column in COLUMNS if column is not IMAGE_COLUMN or _has_images(record)]
    return Table(
        title=f"{record.model}: fidelity to the dense model",
        columns=tuple(column for column, _ in columns),
        rows=tuple(tuple(show(row) for _, show in columns) for row in record.rows),
        raw_names=RAW,
        raw=tuple(tuple(asdict(row)[name] for name in RAW) for row in record.rows),
        notes=(NOTE, ERRORS, *_remarks(record)),
        section=1,
    )


def _has_images(record: FidelityRecord) -> bool:
    return any(row.image_tokens for row in record.rows)


def _remarks(record: FidelityRecord) -> Iterator[str]:
    config = record.config
    if "flops_convention" in config:
        yield f"prefill TFLOPs: {config['flops_convention']}; {_prompts(config.get('prompt_tokens', {}))}."
    yield from skipped_notes(config)
    broken = config.get("broken", ())
    if broken:
        named = [f"{one['source']} {one['doc_id']} ({_of(one)}{one['reason']})" for one in broken[:NAMED]]
        more = "; ..." if len(broken) > NAMED else ""
        yield f"left out: {len(broken)}: {'; '.join(named)}{more}."


def _of(broken: Mapping[str, Any]) -> str:
    return f"{broken['method']}: " if "method" in broken else ""


def _prompts(tokens: Mapping[str, float]) -> str:
    return (
        "prompt of " + ", ".join(f"{count(number)} tokens in {source}" for source, number in tokens.items()) + " (mean)"
    )


def _with_error(value: float | None, error: float | None, show: Callable[[float | None], str]) -> str:
    return "" if value is None else show(value) + ("" if error is None else f" ± {show(error)}")


def _of_two(part: float | None, whole: float | None, sign: str) -> str:
    return "" if part is None or whole is None else f"{count(part)}{sign}{count(whole)}"


def nats(value: float | None) -> str:
    """To a ten-thousandth; what is smaller, and not nothing, by its magnitude."""
    return f"{value:.0e}" if value and abs(value) < 0.00005 else fixed(value, 4)


FidelityColumn = tuple[Column, Callable[[FidelityRow], str]]

IMAGE_COLUMN: FidelityColumn = (
    Column("image\ntokens"),
    lambda row: _of_two(row.image_tokens, row.image_tokens_kept, "→"),
)
COLUMNS: tuple[FidelityColumn, ...] = (
    (Column("method", numeric=False), lambda row: row.method),
    (Column("on", numeric=False), lambda row: row.source),
    (Column("KL\nnats/tok"), lambda row: _with_error(row.kl, row.kl_se, nats)),
    (Column("agree\n%"), lambda row: _with_error(row.agreement, row.agreement_se, fixed)),
    (Column("NLL\nnats/tok"), lambda row: _with_error(row.nll, row.nll_se, lambda value: fixed(value, 3))),
    (Column("first\ndiff"), lambda row: _with_error(row.first_difference, row.first_difference_se, fixed)),
    (Column("same\n%"), lambda row: _with_error(row.same_share, row.same_share_se, lambda value: fixed(value, 0))),
    (Column("answers"), lambda row: str(row.questions)),
    (Column("tokens"), lambda row: str(row.tokens)),
    IMAGE_COLUMN,
    (Column("neurons\nkept of"), lambda row: _of_two(row.neurons_kept, row.neurons, "/")),
    (Column("FFN MiB\nread/tok"), lambda row: significant(row.ffn_read_mib)),
    (Column("prefill\nTFLOPs"), lambda row: significant(row.prefill_tflops)),
    (Column("KV\nMiB"), lambda row: significant(row.kv_cache_mib)),
)


def positions_table(record: FidelityRecord) -> Table:
    """A row for each method, source and position of the answers."""
    names = ("method", "source", "position", "questions", *(f"{name}{end}" for name in SHOWN for end in ("", "_se")))
    raw = tuple(values for row in record.rows for values in _by_position(row, names[3:]))
    return Table(
        title=f"{record.model}: fidelity by position",
        columns=tuple(Column(name, numeric=name not in ("method", "source")) for name in names),
        rows=tuple(tuple(_cell(value) for value in values) for values in raw),
        raw_names=names,
        raw=raw,
        notes=(NOTE, ERRORS),
    )


def _by_position(row: FidelityRow, names: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    lists = [row.by_position.get(name, []) for name in names]
    for position, values in enumerate(zip(*lists, strict=True)):
        yield (row.method, row.source, position, *values)


def _cell(value: Any) -> str:
    return nats(value) if isinstance(value, float) else "" if value is None else str(value)


def write_tables(record: FidelityRecord, directory: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write `table.md`, `.csv`, `.tex` and `positions.csv` into the folder of a record; return their paths."""
    table, folder = fidelity_table(record), Path(directory)
    texts = {"table.md": to_markdown(table), "table.csv": to_csv(table), "table.tex": to_latex(table)}
    texts["positions.csv"] = to_csv(positions_table(record))
    return tuple(write_text_atomic(folder / name, text) for name, text in texts.items())
