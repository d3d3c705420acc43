"""Changes to objects that are not ours, each with its way back."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any


def replace_method(owner: Any, name: str, method: Callable, undo: ExitStack) -> None:
    """Put `method` on this one object, and what it had of its own (or nothing) back on the way out."""
    own = owner.__dict__.get(name)
    setattr(owner, name, method)
    undo.callback(owner.__dict__.pop, name) if own is None else undo.callback(setattr, owner, name, own)
