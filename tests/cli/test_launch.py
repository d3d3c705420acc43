"""`--num-processes`: how a run of several processes ends, as a user sees it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import fake_command
import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from coremat.cli.launch import _order, _sentence, work
from coremat.errors import DataError, UnknownNameError
from coremat.results.record.eval import Record

PATIENCE = 60  # seconds: the launcher itself gives a rank 30 to end
GOES_ON = "the answers made so far are kept, and the same command with --output out goes on"
ARGUMENTS = ("eval", "--methods", "dense,corematching", "--batch-size", "2", "--output", "out")


@contextmanager
def command(folder: Path, processes: int, limit: int, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`coremat eval` of the fake model, in a session of its own as in a terminal."""
    options = ("--num-processes", str(processes), "--limit", str(limit))
    words = [sys.executable, fake_command.__file__, *ARGUMENTS, *options]
    with subprocess.Popen(
        words,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def heed_interrupts() -> None:
    """A shell lets what it starts in the background ignore them, and whatever that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def last_words(said: str) -> str:
    """What is said below the two lines on what is run, which wrap, and the bar, once."""
    _, _, rest = said.partition("as the model's own processor does\n")
    return rest


def children(process: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    return [int(number) for number in found.stdout.split()]


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def answers(folder: Path) -> dict[str, int]:
    return {path.name: len(path.read_bytes().splitlines()) for path in folder.glob("samples*")}


def wait_for_answers(process: subprocess.Popen[str], folder: Path, ranks: int) -> None:
    while len(answers(folder)) < ranks or not all(answers(folder).values()):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)


def test_a_rank_that_is_killed_ends_the_run_which_then_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with command(tmp_path, 2, 10, KILLED="1") as process:
        wait_for_answers(process, out, 2)
        ranks = children(process)
        table, said = process.communicate(timeout=PATIENCE)
    assert last_words(said) == f"error: rank 1 of 2 ended: killed by SIGKILL; {GOES_ON}\n"
    assert (process.returncode, table) == (2, "")
    assert len(ranks) == 2
    assert not any(map(alive, ranks))
    assert answers(out)["samples.rank1.jsonl"] == fake_command.LAST * 2
    assert answers(out)["samples.jsonl"] >= 2

    with command(tmp_path, 2, 10) as process:
        table, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert table.count("\n") > 6
    assert len(last_words(said).splitlines()) == 2, "the bar and where the record is: one process speaks"
    assert re.search(r"40/40 .*\nrecord: out/record.json", said)
    assert answers(out) == {"samples.jsonl": 40}
    assert {row.samples for row in Record.read(out).rows if row.metric == "accuracy"} == {10}


def test_an_interrupt_ends_all_ranks_and_is_no_error(tmp_path: Path) -> None:
    with command(tmp_path, 2, 400) as process:
        wait_for_answers(process, tmp_path / "out", 2)
        ranks = children(process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        table, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, table) == (130, "")
    assert last_words(said) == "stopped; what is done is kept. The same command with --output out goes on from there.\n"
    assert len(ranks) == 2
    assert not any(map(alive, ranks))
    assert sum(answers(tmp_path / "out").values()) >= 4


# --- what is said of a rank that failed ------------------------------------------------------------------


def failure(folder: Path, exitcode: int, error: BaseException | None = None, seconds: int = 0) -> ProcessFailure:
    """Of a process that ended with this code; its report is the one that a rank writes."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    if error is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TORCHELASTIC_ERROR_FILE", str(report))
            patch.setattr("faulthandler.enable", lambda **options: None)
            patch.setattr("coremat.cli.main.app", lambda *words, **options: raised(error))
            with pytest.raises(SystemExit) as left:
                work([])
        assert left.value.code == exitcode
    found = ProcessFailure(0, 1, exitcode, str(report))
    found.timestamp = seconds
    return found


def raised(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    ("exitcode", "error", "said"),
    [
        (-11, None, f"rank 1 of 2 ended: killed by SIGSEGV; {GOES_ON}"),
        (3, SystemExit(3), f"rank 1 of 2 ended: exit code 3; {GOES_ON}"),
        (1, DataError("task pope needs data: run this"), "task pope needs data: run this"),
        (1, UnknownNameError("task", "pop", ["pope"]), "unknown task 'pop': did you mean 'pope'? known are pope"),
        (1, ValueError(), f"rank 1 of 2 ended: ValueError (traceback in out/lmms-eval.rank1.log); {GOES_ON}"),
        (
            1,
            RuntimeError("the device fell off.\nof its bus"),
            "rank 1 of 2 ended: RuntimeError: the device fell off (traceback in out/lmms-eval.rank1.log); " + GOES_ON,
        ),
    ],
)
def test_the_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exitcode: int, error: BaseException | None, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    assert _sentence(1, 2, failure(tmp_path, exitcode, error), Path("out")) == said
    logs = [path.read_text() for path in Path("out").iterdir()]
    assert [log.count("Traceback") for log in logs] == ([1] if "traceback" in said else [])


def test_the_cause_and_not_what_followed(tmp_path: Path) -> None:
    """The launcher ends the other ranks, and some of them fail over the loss before it does."""
    ended = failure(tmp_path, -signal.SIGTERM, seconds=1)
    followed = failure(tmp_path, 1, RuntimeError("connection lost"), seconds=1)
    later = failure(tmp_path, 1, RuntimeError("connection lost"), seconds=2)
    killed = failure(tmp_path, -signal.SIGKILL, seconds=2)
    assert sorted([ended, later, followed, killed], key=_order) == [killed, followed, later, ended]


def test_a_rank_says_how_its_command_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faulthandler.enable", lambda **options: None)
    for code in (None, 0, 130):
        monkeypatch.setattr("coremat.cli.main.app", lambda *words, code=code, **options: code)
        with pytest.raises(SystemExit) as left:
            work([])
        assert left.value.code == (code or 0)
