"""What a user may get wrong, as exceptions. Each message is one sentence: the value found, and what is accepted.

    CorematError            the command line prints its message on one red line and exits with 2
    ├── ConfigError         an option or field out of its range
    ├── UnknownNameError    a name that no list knows: "did you mean ...?"
    ├── ModelError          a model folder or checkpoint that cannot be used
    ├── DataError           a task's data, an image or a series of numbers that cannot be read or used
    ├── RecordError         a run record that is broken, newer, or of another kind
    ├── UnsupportedError    a sound request that this model, method or machine cannot give
    │   └── MissingError    the same, for want of files that are not on this machine
    ├── JudgeError          a judge that cannot be reached, or whose verdict cannot be read
    ├── RankError           one of several processes has ended before its time
    └── OutputError         a file that cannot be written: no space, no permission

Anything else that is raised is a fault of coremat and keeps its traceback.
"""

import difflib
import re
from collections.abc import Iterable

SHOWN = 30  # known names that an error message lists


class CorematError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(CorematError):
    """An option or a field has a value outside its range."""


class UnknownNameError(CorematError):
    """No `kind` (model, task, method, table ...) is called `name`; `known` lists those there are."""

    def __init__(self, kind: str, name: object, known: Iterable[object]) -> None:
        self.kind = kind
        self.name = str(name)
        self.known = tuple(str(one) for one in known)
        super().__init__(kind, self.name, self.known)  # the arguments again, so that a worker process can pickle it

    def __str__(self) -> str:
        close = difflib.get_close_matches(self.name.lower(), self.known, n=1)
        guess = f"did you mean {close[0]!r}? " if close else ""
        rest = f", ... ({len(self.known)} in all)" if len(self.known) > SHOWN else ""
        shown = ", ".join(self.known[:SHOWN]) or "none"
        return f"unknown {self.kind} {self.name!r}: {guess}known are {shown}{rest}"


class ModelError(CorematError):
    """A model cannot be loaded or is not whole."""


class DataError(CorematError):
    """A dataset, an image, or numbers made from them cannot be used."""


class RecordError(CorematError):
    """A run record cannot be read as what it was asked to be."""


class UnsupportedError(CorematError):
    """The request is valid, but this model, method or machine cannot give it."""


class MissingError(UnsupportedError):
    """What a method needs besides the model is not on this machine; with it the model could give the request."""


class JudgeError(CorematError):
    """The judge that grades answers cannot be reached, or its verdict cannot be read."""


class OutputError(CorematError):
    """A file or folder cannot be written."""


class RankError(CorematError):
    """A process of a run in several has ended before its time."""


def first_sentence(error: BaseException) -> str:
    """What another library says of an error, for use within a sentence of our own."""
    return re.split(r"\n|\. ", str(error).strip())[0].rstrip(".") or type(error).__name__
