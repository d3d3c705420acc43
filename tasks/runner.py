"""One evaluation: every method on every task through lmms-eval, journalled answer by answer, as a Record.

A task is loaded once and asked once per method. Its answers are scored by lmms-eval itself when the last of them is
there; the scores are then joined to the journalled lines, from which the record's rows are made. So a run that was
stopped and goes on has the same rows as one that was not.
"""

import argparse
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coremat import __version__, flops
from coremat.config import SparsityConfig
from coremat.environment import environment
from coremat.errors import ConfigError, DataError, UnsupportedError
from coremat.inference import Answer
from coremat.loading import LoadedModel
from coremat.progress import Progress, Step
from coremat.results.record import Record
from coremat.results.tables import write_tables
from coremat.tasks import TaskInfo, resolve_task
from coremat.tasks.journal import Journal, Line, claim_folder
from coremat.tasks.quiet import lmms_eval_quiet
from coremat.tasks.rows import Metric, find_metrics, make_rows

if TYPE_CHECKING:  # it takes lmms-eval along
    from coremat.lmms_model import Question

MIB = 1 << 20


@dataclass(frozen=True)
class LoadedTask:
    """An lmms-eval task with its data, and how many of its questions are asked."""

    info: TaskInfo
    name: str
    task: Any
    size: int
    manager: Any

    @cached_property
    def docs(self) -> Any:
        """The questions without their images."""
        return self.task.eval_docs_no_media


def evaluate(
    loaded: LoadedModel,
    tasks: Sequence[str],
    methods: Mapping[str, SparsityConfig],
    limit: int | float | None = None,
    batch_size: int = 8,
    seed: int = 0,
    output: Path = Path("coremat-eval"),
    progress: Progress = lambda step: None,
    skipped: Mapping[str, str] | None = None,
) -> Record:
    """Evaluate `methods` on `tasks`, write the record and its tables into `output`, and return the record.

    limit: so many questions of each task, or that share of them below 1. seed: of all that is drawn; the configs' own
    give way to it. progress: called after each batch; see `quiet` on what it may write to. skipped: methods that were
    asked for and cannot be run, with the reason; noted in the record.
    The same call on the same folder goes on where it was stopped. DataError for a task without data, OutputError for
    another run's folder or a full disk.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UnsupportedError("coremat evaluates in one process; start it without torchrun or accelerate launch")
    infos = [resolve_task(name) for name in dict.fromkeys(tasks)]
    check_limit(limit)
    methods = {name: replace(config, seed=seed) for name, config in methods.items()}
    claim_folder(output, _identity(loaded, infos, methods, limit, batch_size, seed))
    with lmms_eval_quiet(output), Journal(output) as journal:
        chosen = list({task.name: task for info in infos for task in load_task(info, limit)}.values())
        run = _Run(loaded, chosen, methods, batch_size, seed, journal, progress)
        lines, metrics = run.ask_all()
        journal.finish(lines)
    config = _identity(loaded, infos, methods, limit, batch_size, seed) | {
        "flops_convention": flops.CONVENTION,
        "prompt_tokens": {task.name: _mean_prompt(lines, task.name) for task in chosen},
        "skipped": dict(skipped or {}),
    }
    record = Record(loaded.name, make_rows(lines, metrics), config, environment(loaded.device, loaded.dtype))
    record.write(output)
    write_tables(record, output)
    return record


def check_limit(limit: int | float | None) -> None:
    if limit is None or 0 < limit < 1 or (limit >= 1 and limit == int(limit)):
        return
    raise ConfigError(f"limit is {limit!r}; accepted: a whole number of questions, or a share of them below 1")


def limited(size: int, limit: int | float | None) -> int:
    """How many of `size` questions are asked: a share is rounded up, task by task."""
    if limit is None:
        return size
    return min(size, math.ceil(size * limit) if limit < 1 else int(limit))


def _identity(
    loaded: LoadedModel,
    infos: Sequence[TaskInfo],
    methods: Mapping[str, SparsityConfig],
    limit: int | float | None,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """What makes two runs the same run."""
    return {
        "model": loaded.name,
        "tasks": [info.name for info in infos],
        "methods": {name: config.as_dict() for name, config in methods.items()},
        "limit": limit,
        "batch_size": batch_size,
        "seed": seed,
        "weights": loaded.fingerprint,
        "reading": loaded.reading.as_dict(),
        "device": loaded.device,
        "dtype": loaded.dtype,
        "coremat": __version__,
    }


def _mean_prompt(lines: Sequence[Line], task: str) -> float:
    lengths = [line["prompt_tokens"] for line in lines if line["task"] == task]
    return sum(lengths) / len(lengths)


# --- loading a task --------------------------------------------------------------------------------------


def load_task(info: TaskInfo, limit: int | float | None) -> list[LoadedTask]:
    """The task, or those of a group. Only the task's own folder is indexed: all of lmms-eval's takes 7 s."""
    from lmms_eval.evaluator_utils import get_task_list
    from lmms_eval.tasks import TaskManager, get_task_dict

    manager = TaskManager(include_path=[str(info.folder)], include_defaults=False, model_name="coremat")
    try:
        with _fetching_once(info.name):
            found = get_task_list(get_task_dict([info.name], manager, "chat"))
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"task {info.name} needs the Python module {error.name}, which is missing") from error
    for output in found:
        if output.task.OUTPUT_TYPE != "generate_until":
            raise UnsupportedError(f"task {output.task_name} is of type {output.task.OUTPUT_TYPE}, not generate_until")
    sizes = [limited(len(one.task.eval_docs), limit) for one in found]
    return [LoadedTask(info, one.task_name, one.task, size, manager) for one, size in zip(found, sizes, strict=True)]


@contextmanager
def _fetching_once(name: str) -> Iterator[None]:
    """A dataset that can't be had is said at once: lmms-eval would try five times, and then tell of its tries."""
    from lmms_eval.api.task import ConfigurableTask

    patient = ConfigurableTask.download

    def download(task: Any, dataset_kwargs: Any = None) -> None:
        try:
            patient.__wrapped__(task, dataset_kwargs)
        except Exception as error:
            reason = re.split(r"\n|\. ", str(error).strip())[0].rstrip(".") or type(error).__name__
            raise DataError(
                f"task {name} needs the dataset {task.DATASET_PATH}, which is not here and can't be fetched: {reason}"
            ) from error

    ConfigurableTask.download = download
    try:
        yield
    finally:
        ConfigurableTask.download = patient


# --- asking ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """All methods on all tasks, with what they share."""

    loaded: LoadedModel
    tasks: Sequence[LoadedTask]
    methods: Mapping[str, SparsityConfig]
    batch_size: int
    seed: int
    journal: Journal
    progress: Progress

    def ask_all(self) -> tuple[list[Line], list[Metric]]:
        """The complete lines in the order of the run, and the scores."""
        asked = [self._ask(method, task) for method in self.methods for task in self.tasks]
        return [line for lines, _ in asked for line in lines], [metric for _, metrics in asked for metric in metrics]

    def _ask(self, method: str, task: LoadedTask) -> tuple[list[Line], list[Metric]]:
        from lmms_eval.evaluator import simple_evaluate

        from coremat.lmms_model import CoreMatchingLmms

        total = len(self.methods) * sum(one.size for one in self.tasks)
        store = TaskStore(self.journal, method, task)
        model = CoreMatchingLmms(
            self.loaded,
            self.methods[method],
            self.batch_size,
            store=store,
            on_done=lambda count: self.progress(Step(total, f"{method} on {task.name}", count)),
        )
        results = simple_evaluate(
            model,
            tasks=[task.task],
            task_manager=task.manager,
            limit=task.size,
            bootstrap_iters=0,
            random_seed=self.seed,
            numpy_random_seed=self.seed,
            torch_random_seed=self.seed,
            fewshot_random_seed=self.seed,
            # one process, so no process group; images are not decoded again for the scores
            distributed_executor_backend="torchrun",
            cli_args=argparse.Namespace(output_path=str(self.journal.path.parent), **LMMS_EVAL_ARGUMENTS),
            process_docs_parallel=1,
        )
        names = task.info.metrics or [one["metric"] for one in task.task.config.metric_list]
        metrics = find_metrics(method, task.name, names, task.info.scale, results["results"][task.name])
        return store.scored(results["samples"][task.name], names), metrics if task.info.metrics else metrics[:1]


LMMS_EVAL_ARGUMENTS = {"process_with_media": False, "reasoning_tags": None, "agentic_trace_mode": "basic"}


class TaskStore:
    """The journal for one method on one task: `coremat.lmms_model.AnswerStore`, and then the scored lines."""

    def __init__(self, journal: Journal, method: str, task: LoadedTask) -> None:
        self.journal = journal
        self.method = method
        self.task = task
        self.keys: dict[int, str] = {}

    def get(self, question: "Question") -> str | None:
        self.keys[question.doc_id] = question.key
        line = self.journal.lines.get(question.key)
        return None if line is None else line["answer"]

    def add(self, made: Sequence[tuple["Question", Answer]]) -> None:
        self.journal.append([self._line(question, answer) for question, answer in made])

    def _line(self, question: "Question", answer: Answer) -> Line:
        doc = self.task.docs[question.doc_id]
        return {
            "method": self.method,
            "task": self.task.name,
            "doc_id": question.doc_id,
            "kind": doc.get("kind"),
            "question": question.text,
            "answer": answer.text,
            "target": self.task.task.doc_to_target(doc),
            "correct": None,
            "scores": None,
            **_measured(answer),
            "key": question.key,
        }

    def scored(self, samples: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[Line]:
        """The task's lines in the order of its questions, each with its value of every metric that it has.

        `correct` is the first metric's, 0 to 1; null where that is not scored sample by sample.
        """
        first = {sample["doc_id"]: sample for sample in reversed(samples)}  # of a task's filters
        lines = []
        for doc_id, sample in sorted(first.items()):
            scores = {name: float(sample[name]) for name in metrics if isinstance(sample.get(name), (int, float))}
            line = self.journal.lines[self.keys[doc_id]]
            lines.append({**line, "method": self.method, "correct": scores.get(metrics[0]), "scores": scores})
        return lines


def _measured(answer: Answer) -> Line:
    """What an answer took: times in ms, memory in MiB, neurons as the mean of the layers."""
    stats, decode = answer.stats, answer.decode_seconds_per_token
    return {
        "prompt_tokens": stats.prompt_tokens,
        "new_tokens": answer.new_tokens,
        "image_tokens": stats.image_tokens,
        "image_tokens_kept": stats.image_tokens_kept,
        "kept": list(stats.kept),
        "neurons": stats.neurons,
        "neurons_kept": sum(stats.neurons_kept) / len(stats.neurons_kept),
        "prefill_tflops": stats.prefill_flops / 1e12,
        "kv_cache_mib": stats.kv_bytes / MIB,
        "prefill_ms": answer.prefill_seconds * 1000,
        "decode_ms_per_token": None if decode is None else decode * 1000,
        "selection_ms": stats.selection_seconds * 1000,
        "knees_differ": stats.knees_differ,
    }
