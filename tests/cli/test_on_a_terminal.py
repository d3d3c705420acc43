"""The commands on a terminal of their own, wide or narrow, and into streams of few characters."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path

import pytest

from coremat.results.paper.tables import beside
from coremat.results.record.bench import BenchRecord
from coremat.results.record.eval import Record
from coremat.results.tables.bench import decode_table, length_table, prefill_table
from coremat.results.tables.eval import Table, eval_table

WIDTHS = (60, 80, 100, 120, 200)
REFERENCE = Path(__file__).parents[2] / "results" / "reference"
MARKDOWN = ("check", str(REFERENCE / "default"), "--baseline", str(REFERENCE / "default"), "--format", "markdown")
COREMAT = (sys.executable, "-m", "coremat.cli.main")
LISTS = "\n".join(
    (
        "import sys",
        "from coremat.cli.main import app",
        "for what in (['models'], ['tasks'], ['methods']):",
        "    app(['list', *what], standalone_mode=False)",
        "app(['bench', '--device', 'list'], standalone_mode=False)",
        "app(['check', sys.argv[1], '--baseline', sys.argv[1]], standalone_mode=False)",
    )
)
SHOWN = "\n".join(
    (
        "import sys",
        "from coremat.cli.report import show_table",
        "from coremat.results.record.bench import BenchRecord",
        "from coremat.results.tables.bench import decode_table, length_table, prefill_table",
        "from coremat.results.record.eval import Record",
        "from coremat.results.tables.eval import eval_table",
        "show_table(eval_table(Record.read(sys.argv[1])))",
        "bench = BenchRecord.read(sys.argv[2])",
        "for table in (prefill_table, decode_table, length_table):",
        "    show_table(table(bench))",
    )
)
BAR = "\n".join(
    (
        "from coremat.cli import console",
        "from coremat.progress import Step",
        "with console.progress() as bar:",
        "    bar(Step(19346, 'corematching on easyvqa, batch 12', 3000))",
    )
)


def on_terminal(width: int, *command: str) -> list[str]:
    """The lines that a command leaves on a terminal of this many columns, without colours."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    about = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(command, stdin=writer, stdout=writer, stderr=writer, env=about | {"TERM": "xterm"})
    os.close(writer)
    said = b"".join(iter(lambda: _read(reader), b""))
    os.close(reader)
    assert process.wait() == 0, said.decode()
    return re.sub(r"\x1b\[[0-9;]*m", "", said.decode()).splitlines()


def _read(reader: int) -> bytes:
    """b"" at the end, which Linux calls an error."""
    try:
        return os.read(reader, 65536)
    except OSError:
        return b""


def words(text: str) -> Counter[str]:
    return Counter(text.split())


def numbers(table: Table) -> Counter[str]:
    cells = (row[index] for row in table.rows for index, column in enumerate(table.columns) if column.numeric)
    return words(" ".join(cells))


def assert_whole(lines: list[str], width: int, *tables: Table) -> None:
    """No line is too long, nothing is left out, and every number is a word of its own."""
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for table in tables:
        assert not numbers(table) - words(text)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_of_the_paper(width: int) -> None:
    lines = on_terminal(width, *COREMAT, "table", "2")
    table = beside(2)
    assert_whole(lines, width, table)
    rows = [line for line in lines if line.startswith("paper  ")]
    assert len(rows) % len(table.rows) == 0
    assert sum("corematching" in line for line in rows) == 2 * len(rows) / len(table.rows)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_tables_of_runs(width: int) -> None:
    folders = [REFERENCE / "default", REFERENCE / "speed"]
    lines = on_terminal(width, sys.executable, "-c", SHOWN, *map(str, folders))
    scores, bench = eval_table(Record.read(folders[0])), BenchRecord.read(folders[1])
    assert_whole(lines, width, scores, prefill_table(bench), decode_table(bench), length_table(bench))
    assert any({"dense", "easyvqa", "accuracy", "100.0", "±"} <= set(line.split()) for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_lists_and_checks(width: int) -> None:
    lines = on_terminal(width, sys.executable, "-c", LISTS, str(REFERENCE / "default"))
    assert max(map(len, lines)) <= width
    said = words("\n".join(lines))
    names = {"llama-3.2-11b-vision", "10,670,220,835", "shapes_validation", "corematching-released", "0.5409", "±"}
    assert names <= set(said)
    assert said["99.96"] == 2


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_beside_a_bar(width: int) -> None:
    lines = on_terminal(width, sys.executable, "-c", BAR)
    assert "3000/19346" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "\n".join(lines)).split()
    assert "…" not in "".join(lines)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("command", [("table", "2"), ("list", "tasks"), ("--help",), MARKDOWN])
def test_a_stream_of_few_characters_is_no_error(encoding: str, command: tuple[str, ...]) -> None:
    about = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([*COREMAT, *command], capture_output=True, env=about)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding)


def test_any_text_can_be_printed_there() -> None:
    """The answer of a model, say."""
    code = "from coremat.cli import console; console.take_any_text(); print('a → 猫'); console.log('b ± 犬')"
    about = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=about)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, b"a -> ?", b"b +- ?")
