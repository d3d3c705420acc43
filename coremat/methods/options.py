"""Options of a method: its dataclass fields, checked and parsed by their annotations.

A field is a bool, int, float, str, a Literal, `tuple[int, ...]` (typed 8/16/24), any of these or None, or one of the
kinds below, which have a range. A value that a field does not take is a ConfigError: the value, and what is accepted.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from coremat.errors import ConfigError, UnknownNameError

Parse = Callable[[str], Any]
Holds = Callable[[Any], bool]
WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class Kind:
    """What an option takes. accepted: in words; parse: from what is typed (ValueError if it cannot be); holds: whether
    a value is accepted."""

    accepted: str
    parse: Parse
    holds: Holds


def _is_whole(value: Any, least: int | None = None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 < value <= 1


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _word_or_number(text: str) -> str | int | float:
    try:
        return _number(text)
    except ValueError:
        return text


def _fixed(value: Any) -> bool:
    return _is_whole(value, 1) or (isinstance(value, float) and _is_share(value))


def at_least(least: int) -> Kind:
    return Kind(f"a whole number, at least {least}", int, lambda value: _is_whole(value, least))


SHARE = Kind("a number above 0 and up to 1", _number, _is_share)
FIXED = Kind("a count of at least 1, a share in (0, 1]", _number, _fixed)
BUDGET = Kind(f"knee, all, {FIXED.accepted}", _word_or_number, lambda value: value in ("knee", "all") or _fixed(value))

Budget = Annotated[int | float | str, BUDGET]  # of image tokens; "knee": the method's own rule; "all": none is pruned
FixedBudget = Annotated[int | float, FIXED]
Share = Annotated[float, SHARE]
Layer = Annotated[int, at_least(1)]  # decoder layers that see every token
Count = Annotated[int, at_least(1)]
Seed = Annotated[int, at_least(0)]
Positions = Literal["auto", "original", "restart"]
EarlierCache = Literal["cut", "full"]
Knee = Literal["unsigned", "signed"]

_TRUE_FALSE = Kind("true, false", WORDS.__getitem__, lambda value: isinstance(value, bool))
_PLAIN: Mapping[Any, Kind] = {
    bool: _TRUE_FALSE,
    int: Kind("a whole number", int, _is_whole),
    float: Kind("a number", _number, _is_number),
    str: Kind("a word", str, lambda value: isinstance(value, str)),
}


def kind_of(annotation: Any) -> Kind:
    """The kind of a field, by its annotation. ConfigError for an annotation that an option cannot have."""
    if get_origin(annotation) is Annotated:
        return next((part for part in get_args(annotation) if isinstance(part, Kind)), kind_of(get_args(annotation)[0]))
    if get_origin(annotation) is Literal:
        words = get_args(annotation)
        return Kind(", ".join(map(str, words)), _word_or_number, lambda value: value in words)
    if get_origin(annotation) is tuple:
        return _several(kind_of(get_args(annotation)[0]))
    if get_origin(annotation) in (Union, types.UnionType):
        return _any_of([kind_of(part) for part in get_args(annotation) if part is not type(None)], annotation)
    if annotation not in _PLAIN:
        raise ConfigError(
            f"an option is annotated {annotation!r}; accepted: {', '.join(t.__name__ for t in _PLAIN)}, "
            "Literal, tuple[int, ...], these or None, and the kinds of coremat.methods.options."
        )
    return _PLAIN[annotation]


def _several(one: Kind) -> Kind:
    return Kind(
        f"one or more, divided by /, each {one.accepted}",
        lambda text: tuple(one.parse(part) for part in text.split("/")),
        lambda value: isinstance(value, tuple) and bool(value) and all(map(one.holds, value)),
    )


def _any_of(kinds: list[Kind], annotation: Any) -> Kind:
    optional = type(None) in get_args(annotation)

    def parse(text: str) -> Any:
        if optional and text == "none":
            return None
        for kind in kinds:
            try:
                value = kind.parse(text)
            except (ValueError, KeyError):
                continue
            if kind.holds(value):
                return value
        raise ValueError(text)

    accepted = [*(kind.accepted for kind in kinds), *(["none"] if optional else [])]
    return Kind(
        ", ".join(accepted),
        parse,
        lambda value: (optional and value is None) or any(kind.holds(value) for kind in kinds),
    )


def kinds_of(owner: Any) -> dict[str, Kind]:
    """The options of a method, or of its class, by name, in the order of its fields."""
    if not is_dataclass(owner):
        return {}
    cls = owner if isinstance(owner, type) else type(owner)
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise ConfigError(f"an annotation of {cls.__name__} cannot be read: {error}.") from error
    return {field.name: kind_of(hints[field.name]) for field in fields(owner)}


def defaults_of(cls: type) -> dict[str, Any]:
    return {f.name: None if f.default is MISSING else f.default for f in fields(cls)} if is_dataclass(cls) else {}


def options_of(owner: Any) -> dict[str, Any]:
    """The values of a method's options by name."""
    return {name: getattr(owner, name) for name in kinds_of(owner)}


def check_options(owner: Any) -> None:
    for name, kind in kinds_of(owner).items():
        value = getattr(owner, name)
        if not kind.holds(value):
            raise ConfigError(f"{name} is {value!r}; accepted: {kind.accepted}.")


def parse_option(cls: type, name: str, text: str) -> Any:
    """The value of an option as it is typed. UnknownNameError for an option that the class has not, ConfigError for a
    text that is no value of it."""
    kinds = kinds_of(cls)
    if name not in kinds:
        raise UnknownNameError(f"option of {getattr(cls, 'name', '') or cls.__name__}", name, kinds)
    try:
        value = kinds[name].parse(text)
    except (ValueError, KeyError, OverflowError) as error:
        raise ConfigError(f"{name} is {text!r}; accepted: {kinds[name].accepted}.") from error
    if not kinds[name].holds(value):
        raise ConfigError(f"{name} is {value!r}; accepted: {kinds[name].accepted}.")
    return value
