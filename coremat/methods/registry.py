"""Methods by what is typed: "fastv:tokens=64", "fastv:tokens=64+core-neurons", "package.module:Class",
"./mine.py:Class:tokens=64".

A name is looked up among the classes in the files beside this one, which say `name: ClassVar[str] = "..."`, and then
among the entry points of the group `coremat.methods`; nothing is imported before it is asked for. A dotted name or a
path loads a class of one's own: its file is run, so a path is taken from a user only, never from a record.
"""

import hashlib
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from coremat.errors import ConfigError, UnknownNameError, first_sentence

if TYPE_CHECKING:
    from coremat.methods.base import Method

GROUP = "coremat.methods"
DIGEST = "__coremat_sha256__"  # of the file that a module was made of
DEFAULTS = ("dense", "corematching", "core-tokens", "core-neurons", "random-tokens", "random-neurons")
NAME = re.compile(r'^    name: ClassVar\[str\] = "([^"]+)"$', re.MULTILINE)
JOIN = re.compile(r"\+(?=[A-Za-z_./~])")  # "prumerge+" is a name, "prumerge++core-neurons" two methods


def parse(spec: str, **defaults: object) -> "Method":
    """The method that is typed, with its options. ConfigError or UnknownNameError for what cannot be one.

    defaults: options that a method gets if it has them and they are not typed.
    """
    parts = [_parse_one(part, defaults) for part in JOIN.split(spec.strip())]
    if len(parts) == 1:
        return parts[0]
    from coremat.methods.joined import joined

    return joined(spec, parts)


def method(given: Any) -> "Method":
    """A method as it is, or by its spec. ConfigError for anything else."""
    from coremat.methods.base import Method

    if isinstance(given, Method):
        return given
    if isinstance(given, str):
        return parse(given)
    wanted = "a method such as FastV(tokens=64), or its name and options, 'fastv:tokens=64'"
    if isinstance(given, type) and issubclass(given, Method):
        raise ConfigError(f"the method is the class {given.__name__}; accepted: {wanted}: {given.__name__}().")
    raise ConfigError(f"the method is {given!r}; accepted: {wanted}.")


@cache
def modules() -> dict[str, str]:
    """The module of each method of coremat's own, by its name: "dense" first, then the paper's, then the others."""
    folder = Path(__file__).parent
    files = [folder / "dense.py", *sorted(folder.glob("corematching/*.py")), *sorted(folder.glob("*.py"))]
    found: dict[str, str] = {}
    for file in files:
        place = ".".join(file.relative_to(folder).with_suffix("").parts)
        for name in NAME.findall(file.read_text(encoding="utf-8")):
            found.setdefault(name, f"{__package__}.{place}")
    return found


def all_names() -> tuple[str, ...]:
    """Coremat's own, then those of entry points."""
    return (*modules(), *(name for name in _entry_points() if name not in modules()))


def method_class(name: str) -> type["Method"]:
    """The class of a name, or of "module:Class" or "path.py:Class"."""
    if name in modules():
        module = importlib.import_module(modules()[name])
        classes = dict(inspect.getmembers(module, inspect.isclass)).values()
        own: Any = next(cls for cls in classes if cls.__dict__.get("name") == name)
        return own
    if name in (foreign := _entry_points()):
        return _imported(foreign[name].value, name)
    place, colon, member = name.rpartition(":")
    if place.endswith(".py"):
        return _member(_run_file(Path(place).expanduser()), name, member)
    if colon and "." in place:
        return _imported(name, name)
    if name.endswith(".py"):
        raise ConfigError(f"method {name!r} names no class of the file; accepted: path.py:Class.")
    raise UnknownNameError("method", name, all_names())


def with_options(method: "Method", **options: object) -> "Method":
    """The same method with other values for those of the options that it has."""
    from coremat.methods.joined import Joined

    if isinstance(method, Joined):
        return method.replace(**options)
    made: Any = method
    own = {field.name for field in fields(made)}
    return replace(made, **{name: value for name, value in options.items() if name in own})


# --- parsing ------------------------------------------------------------------------------------------------------


def _parse_one(spec: str, defaults: Mapping[str, object]) -> "Method":
    from coremat.methods.options import kinds_of, parse_option

    name, texts = _divided(spec)
    cls = method_class(name)
    typed = dict(_option(spec, text) for text in texts)
    values = {option: parse_option(cls, option, value) for option, value in typed.items()}
    own = {option: value for option, value in defaults.items() if option in kinds_of(cls)} | values
    made: Any = cls
    lacking = [field.name for field in fields(made) if field.init and _needed(field) and field.name not in own]
    if lacking:
        raise ConfigError(f"method {spec!r} has no value for {', '.join(lacking)}; accepted: {name}:{lacking[0]}=...")
    return cls(**own)


def _needed(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _divided(spec: str) -> tuple[str, list[str]]:
    """The name, with the class that is part of it, and the texts of the options."""
    name, *rest = spec.split(":")
    if rest and "=" not in rest[0] and (name.endswith(".py") or "." in name):
        return f"{name}:{rest[0]}", rest[1:]
    return name, rest


def _option(spec: str, text: str) -> tuple[str, str]:
    option, sign, value = text.partition("=")
    if not sign or not value:
        raise ConfigError(f"method {spec!r} has {text!r} where option=value was expected.")
    return option, value


# --- classes of others ----------------------------------------------------------------------------------------------


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _imported(target: str, called: str) -> type["Method"]:
    place, _, member = target.rpartition(":")
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and place.startswith(error.name):
            raise ConfigError(f"method {called!r}: there is no module {error.name!r}.") from error
        raise ConfigError(f"method {called!r} cannot be imported: {first_sentence(error)}.") from error
    except Exception as error:
        raise ConfigError(f"method {called!r} cannot be imported: {_raised(error, place)}.") from error
    return _member(module, called, member)


def _run_file(path: Path) -> Any:
    """The module of a file, run once for each content that it has."""
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r}; accepted: path.py:Class.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    name = f"coremat_method_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = sys.modules[name] = ModuleType(name)  # registered first, for dataclasses look their module up
    module.__file__, module.__dict__[DIGEST] = str(path), digest
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, (Exception, SystemExit)):
            raise
        raise ConfigError(f"{str(path)!r} cannot be imported: {_raised(error, str(path))}.") from error
    return module


def _raised(error: BaseException, file: str) -> str:
    """What was raised, and in which line of the file."""
    if isinstance(error, SyntaxError):
        line: int | None = error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename.endswith(Path(file).name)), None)
    where = f" in line {line}" if line else ""
    return f"{type(error).__name__}{where}: {first_sentence(error)}"


def _member(module: Any, called: str, name: str) -> type["Method"]:
    from coremat.methods.base import Method

    cls = getattr(module, name, None)
    there = ", ".join(_methods_in(module)) or "none"
    if cls is None:
        raise ConfigError(f"method {called!r} has no class {name!r}; methods in it: {there}.")
    if not isinstance(cls, type) or not issubclass(cls, Method):
        raise ConfigError(
            f"method {called!r}: {name} is no subclass of coremat.methods.base.Method; methods in it: {there}."
        )
    _check_decorated(cls)
    return cls


def _check_decorated(cls: type) -> None:
    """Without the decorator its annotations are no options, and values that are typed for them would be lost."""
    if "__dataclass_fields__" not in cls.__dict__ or not cls.__dict__["__dataclass_params__"].frozen:
        raise ConfigError(f"{cls.__name__} is no frozen dataclass; put @dataclass(frozen=True, kw_only=True) above it.")


def _methods_in(module: Any) -> Iterator[str]:
    from coremat.methods.base import Method

    for name, member in inspect.getmembers(module, inspect.isclass):
        if issubclass(member, Method) and member.__module__ == module.__name__:
            yield name


def source_of(cls: type) -> dict[str, str] | None:
    """File name and SHA-256 of a class that is not coremat's own, for records; None for our own."""
    if cls.__module__.startswith("coremat."):
        return None
    module = sys.modules[cls.__module__]
    file = Path(module.__file__ or "")
    ran = module.__dict__.get(DIGEST) or hashlib.sha256(file.read_bytes()).hexdigest()
    return {"file": file.name, "sha256": ran}
