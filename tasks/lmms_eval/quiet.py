"""lmms-eval's noise goes to a file: what it, its tasks and tqdm print, and its log from INFO on.

A display of the caller's own (a progress bar) must write to a stream that it holds itself, as in
`rich.console.Console(file=sys.stderr)`: for as long as this lasts, sys.stdout and sys.stderr are the file.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from coremat.errors import OutputError

LOG_FILE = "lmms-eval.log"
CHATTY = ("transformers", "datasets", "huggingface_hub")  # their handlers hold the terminal since their import


def log_path(folder: Path, rank: int) -> Path:
    """Each rank has a log of its own."""
    return folder / (LOG_FILE if rank == 0 else LOG_FILE.replace(".", f".rank{rank}."))


class _Log(io.TextIOBase):
    """Appends to a file, unbuffered. A full disk should stop a run where its answers are kept, not in a log line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._file.write(text.encode(errors="replace"))
        return len(text)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def lmms_eval_quiet(folder: Path, rank: int = 0) -> Iterator[None]:
    """Also imports lmms-eval, which takes its seconds and resets loguru's sinks."""
    path = log_path(folder, rank)
    try:
        log = _Log(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    with log, redirect_stdout(log), redirect_stderr(log), _python_logs():
        import lmms_eval.evaluator  # noqa: F401
        from loguru import logger

        logger.remove()
        sink = logger.add(lambda message: print(message, end="", file=log), level="INFO")
        try:
            yield
        finally:
            logger.remove(sink)


@contextmanager
def _python_logs() -> Iterator[None]:
    """Only errors of the libraries' own loggers."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
