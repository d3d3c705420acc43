"""Checks of single values that a user gives: each returns, or raises a ConfigError with the value and what is accepted.

`name` is what the user knows the value by: a field, or an option as it is typed. True and False are no numbers here.
"""

from collections.abc import Iterable

from coremat.errors import ConfigError


def whole_number(name: str, value: object, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}; accepted: a whole number, at least {least}.")


def one_of(name: str, value: object, known: Iterable[str]) -> None:
    names = tuple(known)
    if value not in names:
        raise ConfigError(f"{name} is {value!r}; accepted: {', '.join(names)}.")
