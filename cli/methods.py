"""`coremat list methods [NAME]`: what there is, or one method with its options."""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coremat.cli import console
from coremat.cli.list import show_list
from coremat.errors import CorematError
from coremat.methods import registry

if TYPE_CHECKING:
    from coremat.methods.base import Method


def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="One method: a name, package.module:Class, or file.py:Class, which runs that file."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Say for this model whether it supports each method.")] = None,
) -> None:
    """Methods, or one of them with its options (typed as NAME:option=value)."""
    why_unsupported = None if model is None else _Hindrance(model)
    if name is None:
        _show_all(why_unsupported)
        return
    for part in _parts(registry.parse(name)):
        _show_one(part)
    if why_unsupported is not None:
        console.log(f"with {model}: {why_unsupported.of(name) or 'yes'}")


class _Hindrance:
    """What a model lacks for methods, asked of its architecture without weights."""

    def __init__(self, model: str) -> None:
        from coremat.models.architecture import bare_model
        from coremat.models.load import config_of, own_prune_layer

        config = config_of(model)
        self.model, self._shell = model, bare_model(config, "meta")
        self._prune_layer = own_prune_layer(config)

    def of(self, spec: str) -> str | None:
        from coremat.runtime.support import why_unsupported

        return why_unsupported(self._shell, registry.parse(spec, prune_layer=self._prune_layer))


# --- all of them ---------------------------------------------------------------------------------------------


def _show_all(why_unsupported: _Hindrance | None) -> None:
    last = "what it does" if why_unsupported is None else f"with {why_unsupported.model}"
    show_list("Methods", ("name", "slot", last), [_row(name, why_unsupported) for name in registry.all_names()])
    console.log("what prunes tokens alone combines with what prunes neurons alone: fastv:tokens=64+core-neurons")
    console.log("the options of one: coremat list methods fastv")


def _row(name: str, why_unsupported: _Hindrance | None) -> tuple[str, str, str]:
    """Another package's method that cannot be loaded has its reason in the place of what it does."""
    try:
        method = registry.parse(name)
    except CorematError as error:
        return name, "", str(error)
    slot = f"{method.slot}, accuracy only" if method.accuracy_only else method.slot
    return name, slot, method.summary if why_unsupported is None else why_unsupported.of(name) or "yes"


# --- one -----------------------------------------------------------------------------------------------------


def _parts(method: "Method") -> Sequence["Method"]:
    from coremat.methods.joined import Joined

    return (method.tokens, method.by_neuron) if isinstance(method, Joined) else (method,)


def _show_one(method: "Method") -> None:
    from coremat.methods.options import defaults_of, kinds_of

    cls = type(method)
    print(*_told(method), "", sep="\n")
    defaults = defaults_of(cls)
    rows = [(option, kind.accepted, _typed(defaults[option])) for option, kind in kinds_of(cls).items()]
    if rows:
        show_list("Options", ("option", "accepted", "default"), rows)
    else:
        print("no options\n")


def _told(method: "Method") -> Iterator[str]:
    name = method.identity()["name"]
    yield f"{name}: {method.summary}" if method.summary else name
    calibration = ["a calibration (coremat calibrate)"] if method.takes("calibrate") else []
    needs = ", ".join([*sorted(method.needs), *calibration])
    only = "its decode steps compute more than is counted, and their times mean nothing" * method.accuracy_only
    facts = {"slot": method.slot, "accuracy only": only}
    facts |= {"paper": method.paper, "departures": method.departures, "needs": needs}
    yield from (f"{title}: {text}" for title, text in facts.items() if text)
    yield f"source: {_source(type(method))}"
    yield from filter(None, [_own_words(type(method))])


def _source(cls: type) -> Path:
    """Where it is written; of a file below the working folder, from there."""
    file = Path(inspect.getfile(cls)).resolve()
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def _own_words(cls: type) -> str:
    """Its docstring, which says what the options mean; one that a dataclass made is none."""
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    return "" if text.startswith(f"{cls.__name__}(") else text


def _typed(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
