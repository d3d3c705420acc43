"""Methods by name: what `--methods` accepts. Each is a value of `SparsityConfig`; options typed by hand override it."""

from dataclasses import dataclass, fields, replace

from coremat.config import SparsityConfig
from coremat.errors import ConfigError, UnknownNameError


@dataclass(frozen=True)
class Method:
    name: str
    summary: str
    config: SparsityConfig


_ALL = (
    Method("dense", "the unchanged model", SparsityConfig(tokens="all", neurons="all")),
    Method("corematching", "core tokens and core neurons (the paper)", SparsityConfig()),
    Method("core-tokens", "core tokens only: every neuron while decoding", SparsityConfig(neurons="all")),
    Method("core-neurons", "core neurons only: every image token", SparsityConfig(tokens="all")),
    Method(
        "random-tokens",
        "as many image tokens as core-tokens keeps, sample by sample, drawn at random",
        SparsityConfig(token_score="random", neurons="all"),
    ),
    Method(
        "random-neurons",
        "as many neurons as core-neurons keeps, drawn at random per sample and layer",
        SparsityConfig(tokens="all", neurons="random"),
    ),
    Method(
        "attention-tokens",
        "image tokens above the knee of the last token's attention",
        SparsityConfig(token_score="attention", neurons="all"),
    ),
    Method(
        "projection-tokens",
        "image tokens above the knee of the projection criterion (eq. 8)",
        SparsityConfig(token_score="projection", neurons="all"),
    ),
    Method(
        "fewest-core-tokens",
        "as many image tokens as core-tokens keeps, those with the fewest core neurons",
        SparsityConfig(token_score="fewest-core-neurons", neurons="all"),
    ),
)
METHODS = {method.name: method for method in _ALL}
DEFAULT_METHODS = ("dense", "corematching", "core-tokens", "core-neurons", "random-tokens", "random-neurons")


def method_config(name: str, **overrides: object) -> SparsityConfig:
    """The config of a method. Raises UnknownNameError, or ConfigError for an option that there is not.

    What a method leaves alone stays so: `tokens` given to core-neurons would make it another method.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    config = METHODS[name].config
    known = {field.name for field in fields(SparsityConfig)}
    for option in overrides:
        if option not in known:
            raise UnknownNameError("option of a method", option, sorted(known))
    if "tokens" in overrides and not config.prunes_tokens:
        raise ConfigError(f"tokens is {overrides['tokens']!r}, but {name} keeps every token; accepted: leave it out.")
    return replace(config, **overrides)  # type: ignore[arg-type]


def parse_method(spec: str, **defaults: object) -> SparsityConfig:
    """The config of "name" or "name:option=value:option=value"; `defaults` give way to what is typed.

    Raises UnknownNameError or ConfigError.
    """
    name, *options = spec.split(":")
    typed = dict(_option(spec, text) for text in options)
    return method_config(name, **(defaults | typed))


def _option(spec: str, text: str) -> tuple[str, object]:
    option, sign, value = text.partition("=")
    if not sign or not value:
        raise ConfigError(f"method {spec!r} has {text!r} where option=value was expected.")
    return option, _value(value)


def _value(text: str) -> object:
    """A number, true, false, or the word itself."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
