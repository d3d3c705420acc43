"""A method as the records of evaluations and benches hold it: plain JSON, read without loading the method."""

from typing import Any

from coremat.methods.base import Method


def recorded(method: Method) -> dict[str, Any]:
    """Its identity (name; options or parts; file name and hash of a foreign file), where it cuts, and what of the work
    it shortens.

    shortens: "tokens": of the prompt, so the prefill; "neurons": of a decode step. A method that finds each token's
    neurons in the step itself (`decode_ffn` alone, as the oracle does) may compute them all, and is not said to.
    accuracy_only: there and true where a decode step is known to compute more than `Method.reads` says.
    """
    shorter = (method.takes("neurons") or method.takes("linear")) and not method.accuracy_only
    shortens = {"tokens": method.prunes_tokens, "neurons": shorter}
    found = {**method.identity(), "shortens": shortens, "slot": method.slot}
    return {**found, "accuracy_only": True} if method.accuracy_only else found
