"""A table on a terminal, however narrow: no number is cut, and every number stands beside the name of its row.

Names fold where a line is too short for them. Where all columns still have no room side by side, they go on in a
block below, which begins with the labels again, as long data frames are printed by pandas and R.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from rich.box import SIMPLE_HEAD, Box
from rich.cells import cell_len
from rich.table import Table as RichTable
from rich.text import Text

from coremat.results.tables.eval import Column, Table
from coremat.results.tables.plain_text import spelled

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

ASCII_HEAD = Box(str(SIMPLE_HEAD).replace("─", "-"), ascii=True)
LONGEST_PIECE = 20  # of a name; a longer one is folded anywhere
COMFORT = 20  # columns that a text beside numbers needs to be readable
# Where a name may be broken: after a space or a sign, but not within a number such as 1e-5.
BREAK = re.compile(r"(?<=\s)(?=\S)|(?<=[_:/=])(?=\w)|(?<=[^\W\d][-+])(?<!\de[-+])(?=\w)|(?<=\d[-+])(?=[^\W\d])")

Block = Mapping[int, int]  # the width of each column in it, by the column's index


@dataclass(frozen=True)
class Fitted:
    """What rich prints for a table: title, one block or more, notes. The width is asked when it is printed."""

    table: Table

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        table = _spelled(self.table, options.encoding)
        yield Text(table.title, style="bold")
        for block in blocks(table, options.max_width):
            yield Text()
            yield _shown(table, block, ASCII_HEAD if options.ascii_only else SIMPLE_HEAD)
        if table.notes:
            yield Text("\n".join(["", *table.notes]), style="dim")
        yield Text()


def _spelled(table: Table, encoding: str) -> Table:
    """With no character that the terminal lacks, so that what is measured is what is shown."""
    return replace(
        table,
        title=spelled(table.title, encoding),
        columns=tuple(replace(column, heading=spelled(column.heading, encoding)) for column in table.columns),
        rows=tuple(tuple(spelled(cell, encoding) for cell in row) for row in table.rows),
        notes=tuple(spelled(note, encoding) for note in table.notes),
    )


def blocks(table: Table, width: int) -> list[Block]:
    """Which columns stand side by side on a terminal of `width` columns, and how wide: labels first in each block.

    A block is wider than the terminal only where the labels and a single number are.
    """
    gap = _gap(table)
    return [{index: slot - gap for index, slot in block.items()} for block in _slots(table, gap, width + 1)]


def _gap(table: Table) -> int:
    """Between columns: texts that may fold need more than numbers do."""
    numbers = sum(column.numeric for column in table.columns)
    return 1 if 2 * numbers >= len(table.columns) else 2


def _slots(table: Table, gap: int, room: int) -> list[Block]:
    """`blocks`, of columns with the gap behind them."""
    labels, others = range(table.labels), range(table.labels, len(table.columns))
    most, least = _most(table, gap), _least(table, gap)
    ease = [_ease(labels, index, *ends) for index, ends in enumerate(zip(most, least, strict=True))]
    if sum(ease) <= room:
        return [_squeezed(range(len(ease)), most, ease, room)]
    widest = max((ease[index] for index in others), default=0)
    own = _squeezed(labels, most, least, min(room // 2, room - widest))
    rest = room - sum(own.values())
    return [{**own, **_squeezed(chunk, most, least, rest)} for chunk in _chunks(others, ease, rest)]


def _most(table: Table, gap: int) -> list[int]:
    """The slot in which nothing of a column is folded."""
    return [max(map(cell_len, _lines(table, index))) + gap for index in range(len(table.columns))]


def _least(table: Table, gap: int) -> list[int]:
    """The slot in which no number is cut, and no piece of a name unless it is very long."""
    found = []
    for index, (column, most) in enumerate(zip(table.columns, _most(table, gap), strict=True)):
        longest = max(cell_len(piece.rstrip()) for line in _lines(table, index) for piece in pieces(line))
        found.append(most if column.numeric else min(longest, LONGEST_PIECE) + gap)
    return found


def _lines(table: Table, index: int) -> list[str]:
    """Those of the heading, and the cells."""
    return [*table.columns[index].heading.split("\n"), *(row[index] for row in table.rows)]


def _ease(labels: range, index: int, most: int, least: int) -> int:
    """The slot that a column should have: the one label is whole, and several fold into about two lines each."""
    if index not in labels:
        return max(least, min(most, COMFORT))
    return max(least, -(-most // 2) if len(labels) > 1 else most)


def _squeezed(columns: Sequence[int], most: Sequence[int], least: Sequence[int], room: int) -> dict[int, int]:
    """Slots that fit into the room, the widest made narrower first and none below its least."""
    slots = {index: most[index] for index in columns}
    while sum(slots.values()) > room:
        loose = [index for index in columns if slots[index] > least[index]]
        if not loose:
            break
        slots[max(loose, key=slots.__getitem__)] -= 1
    return slots


def _chunks(columns: Sequence[int], slots: Sequence[int], room: int) -> list[list[int]]:
    """As many columns to a block as the room takes, one at least."""
    found: list[list[int]] = [[]]
    for index in columns:
        if found[-1] and sum(slots[other] for other in (*found[-1], index)) > room:
            found.append([])
        found[-1].append(index)
    return found


def _shown(table: Table, block: Block, box: Box) -> RichTable:
    gap = _gap(table)  # of which the box draws one column
    whole = sum(block.values()) + gap * len(block) - 1
    shown = RichTable(box=box, padding=(0, gap - 1, 0, 0), show_edge=False, width=whole)
    for index, width in block.items():
        column = table.columns[index]
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        heading = Text(_cell(column, column.heading, width), justify=justify)
        shown.add_column(heading, justify=justify, width=width, no_wrap=column.numeric, overflow="fold")
    for row, last in zip(table.rows, table.section_ends(), strict=True):
        cells = (Text(_cell(table.columns[index], row[index], width)) for index, width in block.items())
        shown.add_row(*cells, end_section=last)
    return shown


def _cell(column: Column, text: str, width: int) -> str:
    return text if column.numeric else "\n".join(folded(line, width) for line in text.split("\n"))


def folded(text: str, width: int) -> str:
    """A name over as many lines as it needs, broken between its pieces."""
    lines = [""]
    for piece in pieces(text):
        if lines[-1] and cell_len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def pieces(text: str) -> list[str]:
    """What a name is made of: where it may be broken."""
    return BREAK.split(text)
