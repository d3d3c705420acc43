"""Methods by name: what `--methods` accepts. Each is a value of `SparsityConfig`; options typed by hand override it.

The rivals' mathematics is in the modules beside this one; what prunes tokens alone combines with core neurons, as in
"fastv+core-neurons".
"""

from dataclasses import dataclass, fields, replace

from coremat.config import SparsityConfig
from coremat.errors import ConfigError, UnknownNameError


@dataclass(frozen=True)
class Method:
    name: str
    summary: str
    config: SparsityConfig


BOTH = "+core-neurons"
NINTH = 0.1111  # of the image tokens: 64 of LLaVA-1.5's 576


def _early(score: str, tokens: str | float) -> SparsityConfig:
    """A rival that chooses before the decoder."""
    return SparsityConfig(tokens=tokens, token_score=score, neurons="all", prune_layer=0)


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
    Method(
        "oracle-neurons",
        "each token's largest activations, known beforehand: the upper bound of any predictor, without its speed",
        SparsityConfig(tokens="all", neurons="oracle"),
    ),
    Method(
        "powerinfer",
        "a predictor's time at its sparsity (the paper's PowerInfer row); timing only, its answers mean nothing",
        SparsityConfig(tokens="all", neurons="predicted", beta=0.2),
    ),
    Method(
        "corematching-released",
        "what the authors' released code does: zeros in the caches of layers 5 to 18; nothing gets shorter",
        SparsityConfig(tokens="all", neurons="all", released=True),
    ),
    Method(
        "fastv",
        "FastV: half of the image tokens, by the last token's attention in layer 2",
        SparsityConfig(tokens=0.5, token_score="attention", neurons="all"),
    ),
    Method(
        "prumerge", "PruMerge: outliers of the class token's attention; the others merged", _early("prumerge", "knee")
    ),
    Method("prumerge+", "PruMerge+: the same with places at even distances", _early("prumerge+", "knee")),
    Method("visionzip", "VisionZip: dominant tokens and merged contextual ones", _early("visionzip", NINTH)),
    Method("divprune", "DivPrune: the most diverse image tokens, by max-min distance", _early("divprune", 0.098)),
    Method("uniform-tokens", "image tokens at even distances over the grid", _early("uniform", NINTH)),
    Method("average-pooling", "image tokens averaged over cells of the grid", _early("pooling", NINTH)),
)
METHODS = {method.name: method for method in _ALL}
DEFAULT_METHODS = ("dense", "corematching", "core-tokens", "core-neurons", "random-tokens", "random-neurons")


def method_config(name: str, **overrides: object) -> SparsityConfig:
    """The config of a method. Raises UnknownNameError, or ConfigError for an option that there is not.

    What a method leaves alone stays so: `tokens` given to core-neurons would make it another method.
    """
    config = _named(name)
    known = {field.name for field in fields(SparsityConfig)}
    for option in overrides:
        if option not in known:
            raise UnknownNameError("option of a method", option, sorted(known))
    if "tokens" in overrides and not config.prunes_tokens:
        raise ConfigError(f"tokens is {overrides['tokens']!r}, but {name} keeps every token; accepted: leave it out.")
    return replace(config, **overrides)  # type: ignore[arg-type]


def _named(name: str) -> SparsityConfig:
    """A method, or one that prunes tokens alone with core neurons beside."""
    if name in METHODS:
        return METHODS[name].config
    alone = METHODS.get(name.removesuffix(BOTH))
    if alone is None:
        raise UnknownNameError("method", name, METHODS)
    if not alone.config.prunes_tokens or alone.config.prunes_neurons:
        raise ConfigError(f"method is {name!r}; accepted before {BOTH}: a method that prunes tokens alone.")
    return replace(alone.config, neurons="core")


def parse_method(spec: str, **defaults: object) -> SparsityConfig:
    """The config of "name" or "name:option=value:option=value".

    `defaults` give way to what is typed and to what the method is: a count of tokens is for methods that prune them, a
    pruning layer for those that choose in the decoder. Raises UnknownNameError or ConfigError.
    """
    name, *options = spec.split(":")
    config = _named(name)
    unfit = {"tokens": not config.prunes_tokens, "prune_layer": config.before_decoder}
    fit = {option: value for option, value in defaults.items() if not unfit.get(option)}
    return method_config(name, **(fit | dict(_option(spec, text) for text in options)))


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
