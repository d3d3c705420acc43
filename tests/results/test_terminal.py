"""A table on terminals of any width: every cell is there to its last character, beside the name of its row."""

import io
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from rich.console import Console

from coremat.results.check.compare import compare
from coremat.results.check.forms import to_table
from coremat.results.check.rows import Limits
from coremat.results.paper.tables import beside
from coremat.results.record.bench import BenchRecord
from coremat.results.record.eval import Record
from coremat.results.tables.bench import decode_table, length_table, phase_table, prefill_table
from coremat.results.tables.eval import Column, Table, eval_table
from coremat.results.tables.plain_text import spelled
from coremat.results.tables.terminal import Block, Fitted, blocks, folded

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
WIDTHS = (60, 80, 100, 120, 200)
RULE = {"─", "-"}


def made() -> Iterator[Table]:
    yield eval_table(Record.read(REFERENCE / "default"))
    yield eval_table(Record.read(REFERENCE / "methods"))
    for name in ("speed", "speed-batches", "titanxp"):
        record = BenchRecord.read(REFERENCE / name)
        yield from (table(record) for table in (prefill_table, decode_table, length_table, phase_table))
    yield to_table(compare(REFERENCE / "default", REFERENCE / "default", Limits()))
    yield from (beside(number, [Record.read(REFERENCE / "default")]) for number in range(1, 9))


TABLES = tuple(made())


def printed(table: Table, width: int, encoding: str = "utf-8") -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(width=width, file=stream, color_system=None).print(Fitted(table), crop=False)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]


def bodies(lines: list[str]) -> list[list[str]]:
    """The lines of each block below its headings: those after a rule, up to a line of nothing but a line's end."""
    found: list[list[str]] = []
    below = False
    for line in lines:
        if line and set(line.strip()) <= RULE and len(set(line.strip())) == 1:
            below = True
            found.append([])
        elif not line:
            below = False
        elif below:
            found[-1].append(line)
    return found


def cut(line: str, block: Block, gap: int) -> list[str]:
    """The parts of a line under the columns of a block."""
    ends, at = [], 0
    for width in block.values():
        ends.append((at, at + width))
        at += width + gap
    return [line[begin:end] for begin, end in ends]


def bare(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title[:40])
def test_every_column_is_there_to_its_last_character(table: Table, width: int) -> None:
    lines, found = printed(table, width), blocks(table, width)
    assert max(map(len, lines)) <= width
    assert sorted({index for block in found for index in block}) == list(range(len(table.columns)))
    gap = 1 if 2 * sum(column.numeric for column in table.columns) >= len(table.columns) else 2
    for block, body in zip(found, bodies(lines), strict=True):
        parts = zip(*(cut(line, block, gap) for line in body), strict=True)
        for index, part in zip(block, parts, strict=True):
            assert bare("".join(part)) == bare("".join(row[index] for row in table.rows))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title[:40])
def test_every_block_begins_with_the_labels_and_numbers_stand_whole(table: Table, width: int) -> None:
    lines, found = printed(table, width), blocks(table, width)
    for block, body in zip(found, bodies(lines), strict=True):
        assert list(block)[: table.labels] == list(range(table.labels))
        for row in table.rows:
            numbers = [row[index] for index in block if table.columns[index].numeric]
            names = [folded(row[index], block[index]).split("\n")[0] for index in range(table.labels)]
            assert any(line.startswith(names[0]) and in_order([*names, *numbers], line) for line in body), row


def in_order(cells: list[str], line: str) -> bool:
    """Each cell stands in the line as a word or words of its own, one after the other."""
    at, line = 0, f"{line} "
    for cell in filter(None, cells):
        at = line.find(f"{cell} ", at)
        if at < 0 or (at and line[at - 1] != " "):
            return False
        at += len(cell)
    return True


@pytest.mark.parametrize("width", WIDTHS)
def test_method_task_metric_and_score_are_in_the_first_block(width: int) -> None:
    assert list(blocks(TABLES[0], width)[0])[:4] == [0, 1, 2, 3]


def test_a_wide_terminal_has_every_column_side_by_side() -> None:
    assert all(len(blocks(table, 200)) == 1 for table in TABLES)
    assert [len(blocks(TABLES[0], width)) for width in (60, 80, 114)] == [3, 2, 1]


def test_a_number_wider_than_the_terminal_is_whole() -> None:
    table = Table("T", (Column("name", numeric=False), Column("n")), (("a", "1234567.890123"),), (), ())
    assert any(line.endswith("1234567.890123") for line in printed(table, 12))


def test_notes_use_the_whole_terminal_and_stand_once() -> None:
    table = TABLES[0]
    text = bare("".join(printed(table, 60)))
    assert [text.count(bare(note)) for note in table.notes] == [1] * len(table.notes)


def test_labels_are_the_leading_texts_unless_it_is_said() -> None:
    assert [TABLES[0].labels, beside(3).labels, beside(6).labels, beside(1).labels] == [3, 4, 3, 4]
    assert Table("T", (Column("a", numeric=False),) * 2, (), (), ()).labels == 2


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("llava-1.5-13b", 8, ["llava-", "1.5-13b"]),
        ("corematching:beta=0.2", 14, ["corematching:", "beta=0.2"]),
        ("corematching:beta=1e-5", 13, ["corematching:", "beta=1e-5"]),
        ("fastv+core-neurons", 12, ["fastv+core-", "neurons"]),
        ("all but prumerge, visionzip", 17, ["all but prumerge,", "visionzip"]),
        ("of 9,673 questions", 8, ["of 9,673", "questions"]),
        ("", 5, [""]),
    ],
)
def test_names_fold_between_their_pieces(name: str, width: int, lines: list[str]) -> None:
    assert folded(name, width).split("\n") == lines


@pytest.mark.parametrize(("encoding", "cell"), [("ascii", "144->77.9"), ("cp1252", "144->77.9"), ("utf-8", "144→77.9")])
@pytest.mark.parametrize("width", [80, 120])
def test_a_stream_of_few_characters_gets_the_same_table(encoding: str, cell: str, width: int) -> None:
    lines = printed(TABLES[0], width, encoding)
    assert max(map(len, lines)) <= width
    assert any(cell in line.split() for line in lines)
    widths = [[len(line) for line in body] for body in bodies(lines)]
    assert all(len(list(groupby(each))) == 1 for each in widths), "columns stand below each other"


def test_characters_that_are_lacking_are_spelled() -> None:
    assert spelled("1 ± 2 → 3…", "ascii") == "1 +- 2 -> 3..."
    assert spelled("1 ± 2 → 3", "cp1252") == "1 ± 2 -> 3"
    assert spelled("猫 ± →", "utf-8") == "猫 ± →"
    assert spelled("猫", "ascii") == "?"
