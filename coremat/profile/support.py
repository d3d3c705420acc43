"""Which methods a model can give, and why not the others: asked of `coremat.patch.check`, with or without weights."""

from collections.abc import Mapping
from typing import Any

from coremat.config import SparsityConfig
from coremat.errors import CorematError, UnsupportedError
from coremat.methods import METHODS
from coremat.patch import check
from coremat.profile.random_weights import bare_model, with_layers
from coremat.released import LAYERS


def given_and_skipped(
    model: Any, configs: Mapping[str, SparsityConfig], needed: str
) -> tuple[dict[str, SparsityConfig], dict[str, str]]:
    """The methods that this model can give, and for each of the others a sentence that says why not.

    UnsupportedError if `needed` is among the others, ConfigError for a value that the model cannot take.
    """
    reasons = {spec: hindrance(model, config, UnsupportedError) for spec, config in configs.items()}
    if reasons[needed] is not None:
        raise UnsupportedError(reasons[needed])
    given = {spec: config for spec, config in configs.items() if reasons[spec] is None}
    return given, {spec: reason for spec, reason in reasons.items() if reason is not None}


def hindrance(model: Any, config: SparsityConfig, kind: type[CorematError] = CorematError) -> str | None:
    """What `apply` would say, if it would raise an error of that kind."""
    try:
        check(model, config)
    except kind as error:
        return str(error)
    return None


def method_support(config: Any) -> dict[str, str | None]:
    """For each method, by name, why a model with this Hugging Face config cannot give it, None if it can."""
    shell = bare_model(_shallow(config), "meta")
    return {name: hindrance(shell, method.config) for name, method in METHODS.items()}


def _shallow(config: Any) -> Any:
    """With as many layers as decide what can be had: one more than the first that any method needs."""
    layers = min(config.get_text_config().num_hidden_layers, LAYERS.start + 1)
    config = with_layers(config, layers)
    for name in ("num_hidden_layers", "depth"):
        if getattr(config.vision_config, name, None):
            setattr(config.vision_config, name, 1)
    return config


def summary(support: Mapping[str, str | None]) -> str:
    """The same in a few words."""
    lacking = [name for name, reason in support.items() if reason is not None]
    if not lacking:
        return "all"
    choosing = [name for name in support if METHODS[name].config.prunes_tokens]
    if set(choosing) <= set(lacking):
        return "neurons only"
    return f"all but {', '.join(lacking)}"
