"""One evaluation: every method on every task through lmms-eval, journalled answer by answer, as a Record.

A task is loaded once and asked once per method. Its answers are scored by lmms-eval itself when the last of them is
there; the scores are then joined to the journalled lines, from which the record's rows are made. So a run that was
stopped and goes on has the same rows as one that was not, and so has one in several processes (`ranks`).
"""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coremat import __version__
from coremat.cost.flops import CONVENTION
from coremat.environment import environment
from coremat.methods.base import Method
from coremat.models.known import known_name
from coremat.models.load import LoadedModel
from coremat.names import DOWNSAMPLE
from coremat.progress import Progress, Step
from coremat.results.record.eval import SCHEMA, Record
from coremat.results.tables.eval import write_tables
from coremat.runtime.recorded import recorded
from coremat.tasks.catalogue import FOREIGN, TaskInfo, resolve_tasks
from coremat.tasks.data.local import require
from coremat.tasks.judge.client import Judge
from coremat.tasks.judge.scoring import check_judge, judged_by
from coremat.tasks.lmms_eval.load import LoadedTask, check_limit, load_task
from coremat.tasks.lmms_eval.quiet import lmms_eval_quiet
from coremat.tasks.prompts import forget
from coremat.tasks.run.journal import Journal, claim_folder
from coremat.tasks.run.lines import Line
from coremat.tasks.run.ranks import Alone, ranks_here
from coremat.tasks.run.rows import Metric, find_metrics, make_rows, means_of_tasks, own_scales
from coremat.tasks.run.store import TaskStore

if TYPE_CHECKING:  # it takes lmms-eval along
    from coremat.tasks.lmms_eval.model import CoreMatchingLmms


def evaluate(
    loaded: LoadedModel,
    tasks: Sequence[str],
    methods: Mapping[str, Method],
    limit: int | float | None = None,
    batch_size: int = 8,
    seed: int = 0,
    output: Path = Path("coremat-eval"),
    progress: Progress = lambda step: None,
    skipped: Mapping[str, str] | None = None,
    data_root: Path | None = None,
    judge: Judge | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> Record:
    """Evaluate `methods` on `tasks`, write the record and its tables into `output`, and return the record.

    limit: so many questions of each task, or that share of them below 1. seed: of all that is drawn,
    with a method's own where it has one. progress: called after each batch; see `quiet` on what it may write to.
    skipped: methods that were asked for and cannot be run, with the reason; noted in the record. data_root: a folder
    of local datasets, in place of the hub. judge: for tasks that need one. log: takes what a user should know, a
    sentence at a time.
    The same call on the same folder goes on where it was stopped. Among several ranks the first writes the record, and
    all return it. DataError for a task without data, OutputError for another run's folder or a full disk, JudgeError
    for a judge that does not answer.
    """
    infos = resolve_tasks(tasks)
    check_limit(limit)
    if data_root is not None:
        require(data_root, infos)
    identity = _identity(loaded, infos, methods, limit, batch_size, seed, judge)
    ranks = ranks_here(loaded.device)
    ranks.agree(identity)
    ranks.after_first(lambda: claim_folder(output, identity), then=lambda: None)
    with lmms_eval_quiet(output, ranks.rank), Journal(output, ranks.rank) as journal:
        chosen = ranks.after_first(lambda: _load(infos, limit, data_root, judge))
        run = _Run(loaded, chosen, methods, batch_size, seed, journal, judge, progress, _once(log), ranks)
        if ranks.world > 1:
            run.answer_share()
        return ranks.after_first(lambda: run.record(identity, skipped or {}, output), then=lambda: Record.read(output))


def _identity(
    loaded: LoadedModel,
    infos: Sequence[TaskInfo],
    methods: Mapping[str, Method],
    limit: int | float | None,
    batch_size: int,
    seed: int,
    judge: Judge | None,
) -> dict[str, Any]:
    """What makes two runs the same run."""
    return {
        "model": loaded.name,
        "known_as": known_name(loaded.name),
        "tasks": [info.name for info in infos],
        "methods": {name: recorded(method) for name, method in methods.items()},
        "limit": limit,
        "batch_size": batch_size,
        "seed": seed,
        "weights": loaded.fingerprint,
        "preprocessing": loaded.preprocessing.as_dict(),
        "judge": None if judge is None else judge.model,
        "device": loaded.device.partition(":")[0],
        "dtype": loaded.dtype,
        "coremat": __version__,
        "schema": SCHEMA,
    }


def _load(
    infos: Sequence[TaskInfo], limit: int | float | None, data_root: Path | None, judge: Judge | None
) -> list[LoadedTask]:
    """lmms-eval's tasks, each once, and a judge for those that need one."""
    found = {task.name: task for info in infos for task in load_task(info, limit, data_root)}
    for task in found.values():
        check_judge(task.name, judge)
    return list(found.values())


def _once(log: Callable[[str], None]) -> Callable[[str], None]:
    """What every method would say again is said once."""
    said: set[str] = set()

    def say_once(text: str) -> None:
        if text not in said:
            said.add(text)
            log(text)

    return say_once


def _mean_prompt(lines: Sequence[Line], task: str) -> float | None:
    lengths = [line["prompt_tokens"] for line in lines if line["task"] == task and not line["broken"]]
    return sum(lengths) / len(lengths) if lengths else None


def _broken(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Each question whose image or video could not be read, once for all methods."""
    found = {(line["task"], line["doc_id"]): line["broken"] for line in lines if line["broken"]}
    return [{"task": task, "doc_id": doc_id, "reason": reason} for (task, doc_id), reason in found.items()]


# --- asking ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """All methods on all tasks, with what they share."""

    loaded: LoadedModel
    tasks: Sequence[LoadedTask]
    methods: Mapping[str, Method]
    batch_size: int
    seed: int
    journal: Journal
    judge: Judge | None
    progress: Progress
    log: Callable[[str], None]
    ranks: Alone

    def answer_share(self) -> None:
        """This rank's batches of all methods and tasks, into its own journal; on rank 0 the others' are then there."""
        for method in self.methods:
            for task in self.tasks:
                model, _ = self._model(method, task, self._counted(f"{method} on {task.name}"))
                model.task_dict[task.name] = task.task.dataset
                task.task.build_all_requests(limit=task.size)
                model.answer_share(task.task.instances, self.ranks.rank, self.ranks.world)
        self.ranks.finish(lambda new: self._show("waiting for the other processes", new))
        self.journal.read_others()

    def record(self, identity: Mapping[str, Any], skipped: Mapping[str, str], output: Path) -> Record:
        """Score what there is and ask what there is not; write journal, record and tables."""
        lines, metrics = self.ask_all()
        self.journal.finish(lines)
        infos = {task.info.name: task.info for task in self.tasks}
        config = {
            **identity,
            "flops_convention": CONVENTION,
            "prompt_tokens": {task.name: _mean_prompt(lines, task.name) for task in self.tasks},
            "own_scale": own_scales(metrics),
            "hard_by": self.downsampled,
            "skipped": dict(skipped),
            "broken": _broken(lines),
            "in_smaller_batches": sum(line["smaller_batch"] for line in lines),
            "notes": {name.removeprefix(FOREIGN): info.caveat for name, info in infos.items() if info.caveat},
        }
        where = environment(self.loaded.device, self.loaded.dtype)
        record = Record(self.loaded.name, make_rows(lines, metrics, self.downsampled), config, where)
        record.write(output)
        write_tables(record, output)
        return record

    @property
    def downsampled(self) -> str | None:
        """The method, as typed, that makes pictures smaller: the first of several."""
        return next((typed for typed, method in self.methods.items() if method.label == DOWNSAMPLE), None)

    def ask_all(self) -> tuple[list[Line], list[Metric]]:
        """The complete lines in the order of the run, and the scores; with several ranks every answer is there."""
        lines: list[Line] = []
        metrics: list[Metric] = []
        for method in self.methods:
            asked = [self._ask(method, task) for task in self.tasks]
            lines += [line for new, _ in asked for line in new]
            metrics += means_of_tasks([(task.info, found) for task, (_, found) in zip(self.tasks, asked, strict=True)])
        return lines, metrics

    def _ask(self, method: str, task: LoadedTask) -> tuple[list[Line], list[Metric]]:
        from lmms_eval.evaluator import simple_evaluate

        report = self._counted(f"{method} on {task.name}") if self.ranks.world == 1 else lambda count: None
        model, store = self._model(method, task, report)
        forget(task.task)
        with judged_by(task.name, task.task, self.judge), _as_one_process():
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
                cli_args=argparse.Namespace(output_path=str(self.journal.folder), **LMMS_EVAL_ARGUMENTS),
                process_docs_parallel=JUDGED_AT_ONCE if self.judge else 1,
            )
        scores = task.info.scores
        names = [score.metric for score in scores] or [one["metric"] for one in task.task.config.metric_list]
        metrics = find_metrics(method, task.name, names, results["results"][task.name])
        return store.scored(results["samples"][task.name], names), metrics if scores else metrics[:1]

    def _model(
        self, method: str, task: LoadedTask, on_done: Callable[[int], None]
    ) -> tuple["CoreMatchingLmms", TaskStore]:
        from coremat.tasks.lmms_eval.model import CoreMatchingLmms

        store = TaskStore(self.journal, method, task)
        chosen, seed = self.methods[method], self.seed
        model = CoreMatchingLmms(
            self.loaded, chosen, self.batch_size, seed=seed, store=store, on_done=on_done, log=self.log
        )
        return model, store

    def _counted(self, description: str) -> Callable[[int], None]:
        return lambda count: self._show(description, self.ranks.count(count))

    def _show(self, description: str, new: int) -> None:
        total = len(self.methods) * sum(task.size for task in self.tasks)
        self.progress(Step(total, description, new))


LMMS_EVAL_ARGUMENTS = {"process_with_media": False, "reasoning_tags": None, "agentic_trace_mode": "basic"}
JUDGED_AT_ONCE = 8  # answers that wait for a judge


@contextmanager
def _as_one_process() -> Iterator[None]:
    """Scores are rank 0's alone: lmms-eval would divide the questions and wait for the other ranks."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
