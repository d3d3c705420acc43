"""The functions that `msvd_qa.yaml` and `msrvtt_qa.yaml` name."""

from typing import Any

from coremat.tasks.bundled.video_qa.scoring import exact_results


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    return [doc["video"]]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str]) -> str:
    return f"{lmms_eval_specific_kwargs['pre_prompt']}{doc['question']}{lmms_eval_specific_kwargs['post_prompt']}"


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return exact_results(doc, results)
