"""What a record says of its methods: `config["methods"]`, by what was typed.

Each is {"name", "options" (or "parts", each with these two), "source" (file name and SHA-256, of a foreign file only),
"shortens": {"tokens", "neurons"}, "slot"}, as `runtime.recorded` writes it. Options are a method's own business: they
are compared here, and none is asked for by its name.
"""

from collections.abc import Mapping
from typing import Any

from coremat.errors import RecordError

Described = Mapping[str, Any]


def methods_of(config: Mapping[str, Any]) -> dict[str, Described]:
    """The methods that a record describes; those of a bench of schema 1 are names alone, and not among them."""
    methods = config.get("methods")
    if not isinstance(methods, Mapping):
        return {}
    return {typed: described for typed, described in methods.items() if isinstance(described, Mapping)}


def shortens(config: Mapping[str, Any], method: str, what: str) -> bool:
    """Whether the method makes the "tokens" of a prompt or the "neurons" of a decode step fewer. RecordError if the
    record does not say so."""
    described = methods_of(config).get(method, {})
    if not isinstance(described.get("shortens"), Mapping):
        raise RecordError(f"the record does not say what {method} prunes, and --min-speedup needs it")
    return bool(described["shortens"].get(what))


def settings_of(described: Described) -> dict[str, Any]:
    """What makes two methods of one name differ: options, with the part that has them, and the source of a file."""
    found = dict(described.get("options", {}))
    for part in described.get("parts", ()):
        found |= {f"{part['name']} {name}": value for name, value in settings_of(part).items()}
    return found | ({"source": described["source"]} if "source" in described else {})


# --- schema 1 --------------------------------------------------------------------------------------------

# One set of fields described every method. These said which method it was, and were not options of it.
WHICH = ("token_score", "neurons", "released", "neurons_in_prefill")


def config_of_schema_1(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an evaluation under the names of today, with its methods as they are described today."""
    described = {typed: _described(typed, fields) for typed, fields in methods_of(config).items()}
    renamed = {"preprocessing" if name == "reading" else name: value for name, value in config.items()}
    return {**renamed, "methods": described} if described else renamed


def _described(typed: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    tokens, neurons = fields.get("tokens", "all") != "all", fields.get("neurons", "all")
    # An oracle, as an upper bound of scores, computed every neuron.
    shorter = {"tokens": tokens, "neurons": neurons not in ("all", "oracle")}
    name = typed.partition(":")[0]
    return {"name": name, "options": _options(fields), "shortens": shorter, "slot": _slot(tokens, neurons, fields)}


def _options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those that there still are, under their names of today."""
    found = {name: value for name, value in fields.items() if name not in WHICH}
    if fields.get("neurons_in_prefill"):
        found["prefill_from"] = fields.get("prune_layer")
    if fields.get("positions") == "reindexed":
        found["positions"] = "restart"
    if fields.get("positions") == "auto" and not _is_early(fields):
        found["positions"] = "original"
    return found


def _is_early(fields: Mapping[str, Any]) -> bool:
    """Whether tokens were chosen before the decoder, which alone had this layer."""
    return fields.get("prune_layer") == 0


def _slot(tokens: bool, neurons: str, fields: Mapping[str, Any]) -> str:
    place = "before decoder" if _is_early(fields) else "decoder layer"
    cuts = [*([place] if tokens else []), *([] if neurons == "all" else ["neurons"])]
    return " and ".join(cuts) or ("cache" if fields.get("released") else "none")
