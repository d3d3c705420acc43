"""A method as the records of evaluations and benches hold it: plain JSON, read without loading the method."""

from typing import Any

from coremat.methods.base import Method


def recorded(method: Method) -> dict[str, Any]:
    """Its identity (name; options or parts; file name and hash of a foreign file), where it cuts, and what of the work
    it shortens.

    shortens: "tokens": of the prompt, so the prefill; "neurons": of a decode step. accuracy_only: there and true where
    a decode step is known to compute more than `Method.reads` says, as the oracle's does: it shortens nothing.
    """
    shorter = method.prunes_neurons and not method.accuracy_only
    shortens = {"tokens": method.prunes_tokens, "neurons": shorter}
    found = {**method.identity(), "shortens": shortens, "slot": method.slot}
    return {**found, "accuracy_only": True} if method.accuracy_only else found
