"""`--num-processes N`: the same command again in N processes of this machine, each a rank of one run.

torch's elastic launcher is underneath, as with torchrun; several machines start the command with torchrun itself.
Ranks have sessions of their own: Ctrl-C reaches this process alone, which ends them.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from coremat import errors
from coremat.errors import CorematError, RankError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

RANK = ("-m", "coremat.cli.launch")  # what Python is to run as one rank, before the command's own arguments
PARENT_POLL_SECONDS = 1


def launch(processes: int, arguments: Sequence[str], folder: Path) -> None:
    """Run `coremat ARGUMENTS` as so many ranks of the run in `folder`.

    RankError with the reason of the rank that failed, or the sentence of its own CorematError.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no warnings of connections that end with a process
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        _elastic(processes, arguments)
    except ChildFailedError as error:
        _below_the_bar()
        rank, failure = min(error.failures.items(), key=lambda item: _order(item[1]))
        raise RankError(_sentence(rank, processes, failure, folder)) from error
    except SignalException as stop:
        _below_the_bar()
        raise typer.Exit(128 + stop.sigval) from None
    except KeyboardInterrupt:
        _below_the_bar()
        raise


def _elastic(processes: int, arguments: Sequence[str]) -> None:
    import logging

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # the launcher's own tale; what matters of it is said in the error
    try:
        with TemporaryDirectory(prefix="coremat-ranks-") as reports:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                run_id="coremat",
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                max_restarts=0,
                monitor_interval=0.2,
                logs_specs=DefaultLogsSpecs(log_dir=reports),
                signals_to_handle="SIGTERM,SIGHUP,SIGQUIT",  # an interrupt stays what it is for Python
            )
            elastic_launch(config, sys.executable)(*RANK, *arguments)
    finally:
        logging.disable(logging.NOTSET)


def _below_the_bar() -> None:
    """Rank 0 was ended while it drew: the cursor is hidden, and on the bar's own line."""
    from rich.console import Console

    terminal = Console(stderr=True)
    if terminal.is_terminal:
        terminal.show_cursor()
        terminal.line()


# --- why a rank ended ------------------------------------------------------------------------------------


def _order(failure: "ProcessFailure") -> tuple[int, int]:
    """The cause first: a rank that was killed, then one that raised or left; the launcher ends the others itself."""
    ended = -signal.SIGTERM
    kind = 0 if failure.exitcode < 0 and failure.exitcode != ended else 2 if failure.exitcode == ended else 1
    return kind, failure.timestamp


def _sentence(rank: int, processes: int, failure: "ProcessFailure", folder: Path) -> str:
    from coremat.tasks.lmms_eval.quiet import log_path

    said: dict[str, Any] = failure.message if isinstance(failure.message, dict) else {}
    kind, _, text = said.get("message", "").partition(": ")
    if issubclass(getattr(errors, kind, object), CorematError):
        return text
    return (
        f"rank {rank} of {processes} ended: {_reason(failure, said, log_path(folder, rank))}; "
        f"the answers made so far are kept, and the same command with --output {folder} goes on"
    )


def _reason(failure: "ProcessFailure", said: dict[str, Any], log: Path) -> str:
    """The signal that ended it, what it raised (the traceback goes into its log), or its exit code."""
    if failure.exitcode < 0:
        return f"killed by {failure.signal_name()}"
    if not said:
        return f"exit code {failure.exitcode}"
    with suppress(OSError), log.open("a", encoding="utf-8") as file:
        file.write(said["extraInfo"]["py_callstack"])
    return f"{said['message'].strip().splitlines()[0].rstrip('.: ')} (traceback in {log})"


# --- one rank --------------------------------------------------------------------------------------------


def work(arguments: list[str]) -> None:
    """The command in this process. What it raises goes to the launcher, which says it."""
    from torch.distributed.elastic.multiprocessing.errors import record

    from coremat.cli import console
    from coremat.cli.main import app

    console.take_any_text()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        code = record(app)(arguments, standalone_mode=False)
    except Exception:  # which `record` has written down for the launcher
        code = 1
    sys.exit(code or 0)


def _end_with(launcher: int) -> None:
    """A launcher that was killed could not end its ranks."""
    while os.getppid() == launcher:
        time.sleep(PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    work(sys.argv[1:])
