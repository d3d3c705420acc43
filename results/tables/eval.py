"""A table as a value, its forms in files (markdown, CSV, LaTeX), and the table of an evaluation.

Cells are texts, rounded for reading; the raw numbers go along for the CSV. What was not measured is an
empty cell everywhere.
"""

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coremat.errors import UnknownNameError
from coremat.results.record.eval import ROW_FIELDS, Record, Row, write_text_atomic
from coremat.results.record.methods import methods_of

PROJECTED_MARK = "~"  # before every number that was projected, not measured
PROJECTED_NOTE = f"{PROJECTED_MARK}: projected onto a device by its data, not measured."
NAMED = 3  # of what could not be read
LATEX_SPECIAL = {
    **{char: "\\" + char for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "→": r"$\to$",
}


@dataclass(frozen=True)
class Column:
    """The heading may have two lines, the unit in the second. Texts stand left and may wrap, numbers do neither."""

    heading: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """`rows` are the cells as shown; `raw` the values behind them, under `raw_names`, None where there is none.

    `section`: the column whose change of value begins a new group of rows; None: no groups.
    `label_count`: see `labels`.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    raw_names: tuple[str, ...]
    raw: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()
    section: int | None = 0
    label_count: int | None = None

    @property
    def labels(self) -> int:
        """How many columns, from the first on, say which row it is: the leading texts where nothing is said."""
        if self.label_count is not None:
            return self.label_count
        return next((number for number, column in enumerate(self.columns) if column.numeric), len(self.columns))

    def section_ends(self) -> list[bool]:
        """For each row, whether another section follows it."""
        keys = ["" if self.section is None else row[self.section] for row in self.rows]
        return [key != following for key, following in zip(keys, [*keys[1:], *keys[-1:]], strict=True)]


def significant(value: float | None, digits: int = 3) -> str:
    """A number with this many significant digits and no exponent, the part before the point always whole."""
    if value is None:
        return ""
    if not value:
        return "0"
    magnitude = int(f"{abs(value):.{digits - 1}e}".partition("e")[2])
    return f"{value:.{max(0, digits - 1 - magnitude)}f}"


def fixed(value: float | None, decimals: int = 1) -> str:
    """A number with this many decimals."""
    return "" if value is None else f"{value:.{decimals}f}"


def count(value: float | None) -> str:
    """A mean count: whole as it is, otherwise to a tenth."""
    return "" if value is None else f"{value:.1f}".removesuffix(".0")


def mark(value: Any, projected: bool) -> Any:
    """A number or its text as it is; if it was projected, as a text that says so. What is not there has no mark."""
    return f"{PROJECTED_MARK}{value}" if projected and value not in (None, "") else value


def render(table: Table, form: str) -> str:
    """The table as text in one of `FORMS`. UnknownNameError for another form."""
    if form not in FORMS:
        raise UnknownNameError("table format", form, FORMS)
    return FORMS[form](table)


def to_markdown(table: Table) -> str:
    """A GitHub table under a bold title, the notes as a list below."""
    headings = [column.heading for column in table.columns]
    rules = ["---:" if column.numeric else "---" for column in table.columns]
    lines = [f"**{table.title}**", ""]
    lines += [_markdown_row(cells) for cells in (headings, rules, *table.rows)]
    lines += ["", *(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def to_csv(table: Table) -> str:
    """The raw values, unrounded, under their names in the record."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.raw_names)
    writer.writerows(table.raw)
    return text.getvalue()


def to_latex(table: Table) -> str:
    """A `table` float for the package booktabs."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.title)}}}"]
    lines += [rf"\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in table.columns)}}}"]
    lines += [r"\toprule", _latex_row(_latex_heading(column.heading) for column in table.columns), r"\midrule"]
    for row, last in zip(table.rows, table.section_ends(), strict=True):
        lines += [_latex_row(map(_latex, row)), *([r"\midrule"] if last else [])]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip{{\footnotesize {_latex(note)}\par}}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(char, char) for char in text)


def _latex_heading(heading: str) -> str:
    lines = r" \\ ".join(map(_latex, heading.split("\n")))
    return rf"\shortstack{{{lines}}}" if "\n" in heading else lines


FORMS: Mapping[str, Callable[[Table], str]] = {"markdown": to_markdown, "csv": to_csv, "latex": to_latex}


def eval_table(record: Record) -> Table:
    """The table of an evaluation: the methods side by side, task by task."""
    tasks = list(dict.fromkeys(row.task for row in record.rows))
    columns = _columns(record)
    rows = sorted(record.rows, key=lambda row: tasks.index(row.task))
    return Table(
        title=f"{record.model}: methods side by side",
        columns=tuple(column for column, _ in columns),
        rows=tuple(tuple(show(record, row) for _, show in columns) for row in rows),
        raw_names=ROW_FIELDS,
        raw=tuple(tuple(asdict(row).values()) for row in rows),
        notes=(EVAL_NOTE, _times_note(record), *_flops_notes(record, rows), *_remarks(record.config)),
        section=1,
    )


def _columns(record: Record) -> tuple[tuple[Column, Callable[[Record, Row], str]], ...]:
    """What FFNs read was not counted before schema 3."""
    counted = any(row.ffn_read_mib is not None for row in record.rows)
    return tuple(pair for pair in EVAL_COLUMNS if counted or not pair[0].heading.startswith("FFN"))


def accuracy_only_notes(config: Mapping[str, Any]) -> Iterator[str]:
    """The methods of a record whose times mean nothing."""
    for method, described in methods_of(config).items():
        if described.get("accuracy_only"):
            yield f"{method}: accuracy only; decode steps compute more than is counted, so their times mean nothing."


def skipped_notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The methods that a record was to have and could not, each with its reason."""
    return tuple(f"{method} skipped: {why}" for method, why in config.get("skipped", {}).items())


def _remarks(config: Mapping[str, Any]) -> Iterator[str]:
    """Scores on a scale of their own, what did not go as asked, and where a task is not quite the paper's."""
    for task, metrics in config.get("own_scale", {}).items():
        yield f"{task}: {', '.join(metrics)} as lmms-eval gives it, which is not made per cent."
    yield from accuracy_only_notes(config)
    yield from skipped_notes(config)
    broken = [f"{one['task']} {one['doc_id']}" for one in config.get("broken", ())]
    if broken:
        named = ", ".join([*broken[:NAMED], *(["..."] if len(broken) > NAMED else [])])
        yield f"images or videos that could not be read, and count as wrong: {len(broken)} ({named})."
    if config.get("in_smaller_batches"):
        yield f"memory ran out: answers that came from smaller batches: {config['in_smaller_batches']}."
    yield from (f"{task}: {remark}." for task, remark in config.get("notes", {}).items())


def _score(record: Record, row: Row) -> str:
    """To a tenth of a point; on lmms-eval's own scale, which may end at 1, to a thousandth."""
    decimals = 3 if record.has_own_scale(row.task, row.metric) else 1
    error = f" ± {fixed(row.stderr, decimals)}" if row.stderr is not None else ""
    return "" if row.score is None else f"{fixed(row.score, decimals)}{error}"


def _of(part: str, whole: str, sign: str) -> str:
    """Two counts in one cell; with one of them missing, the other still stands on its own side of the sign."""
    return f"{part}{sign}{whole}" if part or whole else ""


EVAL_COLUMNS: tuple[tuple[Column, Callable[[Record, Row], str]], ...] = (
    (Column("method", numeric=False), lambda _, row: row.method),
    (Column("task", numeric=False), lambda _, row: row.task),
    (Column("metric", numeric=False), lambda _, row: row.metric),
    (Column("score"), _score),
    (Column("samples"), lambda _, row: str(row.samples)),
    (Column("image\ntokens"), lambda _, row: _of(count(row.image_tokens), count(row.image_tokens_kept), "→")),
    (Column("neurons\nkept of"), lambda _, row: _of(count(row.neurons_kept), count(row.neurons), "/")),
    (Column("FFN MiB\nread/tok"), lambda _, row: significant(row.ffn_read_mib)),
    (Column("prefill\nTFLOPs"), lambda _, row: significant(row.prefill_tflops)),
    (Column("KV\nMiB"), lambda _, row: significant(row.kv_cache_mib)),
    (Column("first\ntoken ms"), lambda _, row: significant(row.first_token_ms)),
    (Column("decode\nms/tok"), lambda _, row: significant(row.decode_ms_per_token)),
    (Column("select\nms"), lambda _, row: significant(row.selection_ms)),
    (Column("agree\n%"), lambda _, row: fixed(row.agreement_with_dense)),
)

EVAL_NOTE = (
    "score: mean ± standard error, in per cent (MME: points; a judge's scores of answers on videos: 0 to 5); "
    "image tokens: seen → kept; neurons: per decoder layer; first token: from the start of generate, vision tower "
    "included, over the batch's rows; agree: answers equal to those of dense."
)


def _times_note(record: Record) -> str:
    device = record.environment.get("device")
    where = f", measured on {device}" if device else ""
    return f"Counts are means over samples, times are medians{where}; an empty cell was not measured."


def _flops_notes(record: Record, rows: Iterable[Row]) -> tuple[str, ...]:
    """How the FLOPs of this record were counted, where it has any."""
    return (flops_note(record),) if any(row.prefill_tflops is not None for row in rows) else ()


def flops_note(record: Record) -> str:
    """The convention and the prompt length behind a record's prefill TFLOPs."""
    convention = record.config.get("flops_convention", "convention not recorded")
    tokens = record.config.get("prompt_tokens")
    length = f"prompt of {_prompt(tokens)} (mean)" if tokens else "prompt length not recorded"
    return f"prefill TFLOPs: {convention}; {length}."


def _prompt(tokens: Any) -> str:
    """One length, or one for each task."""
    if isinstance(tokens, Mapping):
        return ", ".join(f"{count(number)} tokens in {task}" for task, number in tokens.items())
    return f"{count(tokens)} tokens"


def write_tables(record: Record, directory: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write `table.md`, `table.csv` and `table.tex` into the folder of a record; return their paths."""
    table = eval_table(record)
    forms = {"table.md": to_markdown, "table.csv": to_csv, "table.tex": to_latex}
    return tuple(write_text_atomic(Path(directory) / name, form(table)) for name, form in forms.items())
