"""The functions that `shapes.yaml` names."""

from typing import Any

from coremat.tasks.bundled.scoring import exact_match, listing_f1, listing_match


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    return [doc["image"]]


def doc_to_text(doc: dict[str, Any]) -> str:
    return doc["question"]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """`listing_f1` only where a list was asked for: lmms-eval averages a metric over the samples that have it."""
    answer, target = results[0], doc["answer"]
    if doc["kind"] == "listing":
        return {"accuracy": listing_match(answer, target), "listing_f1": listing_f1(answer, target)}
    return {"accuracy": exact_match(answer, target)}
