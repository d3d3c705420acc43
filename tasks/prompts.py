"""Where LLaVA-1.5's evaluation, which the paper follows, differs from lmms-eval's tasks: what is changed in them.

Most tasks of lmms-eval ask as LLaVA does. `changes` gives what a task's YAML is overridden with; each change stands
beside its reason. Decoding is greedy everywhere; where a task sets no length, `tasks.lmms_eval.model` stops after 128
new tokens, as LLaVA's own evaluation does.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from coremat.errors import DataError
from coremat.tasks.catalogue import HUB, resolve_task
from coremat.tasks.data.local import videos_of

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
GQA_IMAGES = ("testdev_balanced_images", "testdev")


def changes(task: str, data_root: Path | None) -> dict[str, Any]:
    """What overrides the YAML of this task of lmms-eval; data_root: where local copies of datasets are, if anywhere."""
    return _CHANGES[task](data_root) if task in _CHANGES else {}


def forget(task: Any) -> None:
    """OCRBench adds its hits up in its module, where those of one method would count for the next one."""
    for metric in task.config.metric_list:
        sums = getattr(metric.get("aggregation"), "__globals__", {}).get("OCRBench_score", {})
        sums.update(dict.fromkeys(sums, 0))


def _prompts(**texts: Any) -> dict[str, Any]:
    return {"lmms_eval_specific_kwargs": {"default": {"pre_prompt": "", "post_prompt": "", **texts}}}


def _textvqa(data_root: Path | None) -> dict[str, Any]:
    """The OCR tokens stand in the question as a reference; lmms-eval leaves them out by default."""
    return _prompts(post_prompt=SHORT, ocr=True)


def _mmvet(data_root: Path | None) -> dict[str, Any]:
    """The question alone; lmms-eval first asks to think step by step."""
    return _prompts()


def _mmbench(data_root: Path | None) -> dict[str, Any]:
    """Hint, question and options on lines of their own; lmms-eval announces the options in a sentence."""
    return {"doc_to_text": mmbench_question}


def mmbench_question(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    options = [f"{letter}. {doc[letter]}" for letter in "ABCD" if _is_given(doc.get(letter))]
    hint = [doc["hint"]] if _is_given(doc.get("hint")) else []
    return "\n".join([*hint, doc["question"], *options]) + LETTER


def _is_given(value: Any) -> bool:
    return isinstance(value, str) and value.lower() not in ("", "nan", "none")


def _seed(data_root: Path | None) -> dict[str, Any]:
    """The questions on images; those on videos are another benchmark in the same dataset."""
    return {"process_docs": lambda docs: docs.filter(lambda kind: kind == "image", input_columns="data_type")}


def _gqa(data_root: Path | None) -> dict[str, Any]:
    """An image is looked up when it is shown; lmms-eval copies and encodes it anew for each of its questions."""
    images = GqaImages()
    return {"process_docs": images.load, "doc_to_visual": images.of}


class GqaImages:
    """GQA's images, which are a dataset of their own: some 400 for 12,578 questions."""

    def load(self, questions: Any) -> Any:
        """Called when the questions are loaded, which stay what they are."""
        import datasets

        config, split = GQA_IMAGES
        self.images = datasets.load_dataset(f"{HUB}/GQA", config, split=split)
        self.rows = {name: row for row, name in enumerate(self.images["id"])}
        return questions

    def of(self, doc: Mapping[str, Any]) -> list[Any]:
        return [self.images[self.rows[doc["imageId"]]]["image"].convert("RGB")]


def _activitynet(data_root: Path | None) -> dict[str, Any]:
    """With a folder of datasets the videos are in it; lmms-eval looks for them beside its own cache."""
    if data_root is None:
        return {}
    data = resolve_task("activitynet-qa").data
    videos = videos_of(data_root / data.path) if data else {}
    return {"dataset_kwargs": {}, "doc_to_visual": partial(activitynet_video, videos)}


def activitynet_video(videos: Mapping[str, Path], doc: Mapping[str, Any]) -> list[str]:
    name = f"v_{doc['video_name']}"
    if name not in videos:
        raise DataError(f"there is no video {name} in the dataset of activitynet-qa")
    return [str(videos[name])]


_CHANGES: Mapping[str, Callable[[Path | None], dict[str, Any]]] = {
    "textvqa_val": _textvqa,
    "mmvet": _mmvet,
    "mmbench_en_dev_static": _mmbench,
    "seedbench": _seed,
    "gqa": _gqa,
    "activitynetqa": _activitynet,
}
