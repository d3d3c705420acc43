"""The functions that `easyvqa.yaml` names."""

from typing import Any

from coremat.tasks.bundled.scoring import exact_match


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    return [doc["image"]]


def doc_to_text(doc: dict[str, Any]) -> str:
    return doc["question"]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"accuracy": exact_match(results[0], doc["answer"])}
