"""Which methods a model can run, and why not the others: what `apply` would say, asked with or without weights.

The answers of the known models in a few words are data, for `coremat list models`. After a change of methods or models

    python -m coremat.runtime.support

writes them again; a test holds them to what is asked here.
"""

import json
from collections.abc import Mapping
from typing import Any

from coremat.errors import CorematError, MissingError, UnsupportedError
from coremat.methods import registry
from coremat.methods.base import Method
from coremat.methods.calibrated import Calibrated
from coremat.models.architecture import bare_model, shipped_config
from coremat.models.known import KNOWN_MODELS, METHOD_SUPPORT
from coremat.runtime.calibration import check_calibration
from coremat.runtime.session import check

TIMING_ONLY = "timing only; coremat bench has it."


def given_and_skipped(
    model: Any, methods: Mapping[str, Method], timing: bool = False
) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods that this model can run, and for each of the others a sentence that says why not.

    timing: nothing but speed is asked, so that methods whose answers mean nothing are among them. UnsupportedError if
    no method is left, ConfigError for a value that the model cannot take.
    """
    reasons = {spec: _reason(model, method, timing) for spec, method in methods.items()}
    skipped = {spec: reason for spec, reason in reasons.items() if reason is not None}
    if methods and len(skipped) == len(methods):
        raise UnsupportedError("; ".join(f"{spec}: {reason}" for spec, reason in skipped.items()))
    return {spec: method for spec, method in methods.items() if spec not in skipped}, skipped


def _reason(model: Any, method: Method, timing: bool) -> str | None:
    if method.timing_only and not timing:
        return TIMING_ONLY
    return why_unsupported(model, method, UnsupportedError)


def why_unsupported(model: Any, method: Method, kind: type[CorematError] = CorematError) -> str | None:
    """What `apply` would say, if it would raise an error of that kind."""
    try:
        check(model, method)
    except kind as error:
        return str(error)
    return None


def method_support(config: Any) -> dict[str, str | None]:
    """For each of coremat's own methods why a model with this Hugging Face config cannot run it; None if it can, be it
    with files that are not on this machine, or after a calibration."""
    shell = bare_model(config, "meta")
    return {name: _why_lacking(shell, registry.parse(name)) for name in registry.modules()}


def _why_lacking(shell: Any, method: Method) -> str | None:
    try:
        if isinstance(method, Calibrated):
            check_calibration(shell, method)
        else:
            check(shell, method)
    except MissingError:
        return None
    except CorematError as error:
        return str(error)
    return None


def summary(support: Mapping[str, str | None]) -> str:
    """The same in a few words."""
    lacking = [name for name, reason in support.items() if reason is not None]
    if not lacking:
        return "all"
    if all(name in lacking for name in support if registry.parse(name).prunes_tokens):
        return "neurons only"
    needs = sorted({need for name in lacking for need in registry.method_class(name).needs})
    if lacking == [name for name in support if registry.method_class(name).needs.intersection(needs)]:
        return f"all but methods that need a {' or a '.join(needs)}"
    return f"all but {', '.join(lacking)}"


def known_support() -> dict[str, str]:
    """For each known model, by name, the summary of what it can run."""
    return {name: summary(method_support(shipped_config(name))) for name in KNOWN_MODELS}


if __name__ == "__main__":
    METHOD_SUPPORT.write_text(json.dumps(known_support(), indent=2) + "\n", encoding="utf-8")
