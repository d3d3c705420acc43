"""What `make bench` measures: speed on LLaVA-1.5-7B's shapes beside its limits, and how near to them it has to come.

`python -m coremat.tasks.reproduce.benchmark --output results/reference`: four benches on random weights, one
projection, and the evaluation of the bundled model. Each has a folder with its record, tables and plots; `goals.md`
lays what was reached beside what has to be.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from coremat.bench.options import BenchOptions
from coremat.bench.run import bench
from coremat.errors import UnknownNameError
from coremat.hardware.titanxp_calibration import check_against_table3
from coremat.methods.registry import DEFAULTS, modules, parse
from coremat.models.known import BUNDLED
from coremat.models.load import load
from coremat.names import DENSE
from coremat.progress import Step
from coremat.results.plots.bench import write_bench_plots
from coremat.results.record.bench import BenchRecord
from coremat.results.record.bench_rows import DECODE, END_TO_END, PREFILL, SELECTION, BenchRow
from coremat.results.record.eval import read_samples, write_text_atomic
from coremat.results.tables.bench import write_bench_tables
from coremat.results.tables.eval import PROJECTED_NOTE, Column, Table, mark, to_csv, to_markdown
from coremat.tasks.run.runner import evaluate
from coremat.timers import Stopwatch

MODEL, KEPT, TEXT = "llava-1.5-7b", 64, 34
FFN_MIB_PER_LAYER = 3 * 11008 * 4096 * 2 / 2**20
KV_MIB_PER_TOKEN_AND_LAYER = 2 * 4096 * 2 / 2**20
PAPER, HALF = "corematching", "corematching:beta=0.2"
ALL = tuple(modules())


@dataclass(frozen=True)
class Run:
    """One bench: the options as they would be typed."""

    name: str
    methods: tuple[str, ...]
    device: str = "cpu"
    layers: int | None = None
    new_tokens: int = 64
    batch_sizes: tuple[int, ...] = (1,)
    repeats: int = 10

    @property
    def options(self) -> BenchOptions:
        return BenchOptions(
            MODEL,
            self.methods,
            device=self.device,
            layers=self.layers,
            image_tokens_kept=KEPT,
            text_tokens=TEXT,
            new_tokens=self.new_tokens,
            batch_sizes=self.batch_sizes,
            repeats=self.repeats,
        )

    @property
    def command(self) -> str:
        layers = f" --layers {self.layers}" if self.layers else ""
        methods = "all" if self.methods == ALL else ",".join(self.methods)
        sizes = ",".join(map(str, self.batch_sizes))
        return (
            f"coremat bench --model {MODEL} --methods {methods} --device {self.device}{layers} "
            f"--image-tokens-kept {KEPT} --text-tokens {TEXT} --new-tokens {self.new_tokens} --batch-size {sizes} "
            f"--repeats {self.repeats}"
        )


ALONE = ("core-tokens", "core-neurons")
EARLY = "corematching:prune_layer=1"
RUNS = (
    Run("speed", ("dense", PAPER, HALF, *ALONE), layers=4),
    Run("speed-12-layers", ("dense", PAPER), layers=12, new_tokens=1),
    Run(
        "speed-batches",
        ("dense", EARLY, f"{EARLY}:neuron_sets=batch"),
        layers=2,
        new_tokens=9,
        batch_sizes=(1, 2, 4, 8),
        repeats=5,
    ),
    Run("speed-methods", ALL, layers=4, new_tokens=8, repeats=3),
    Run("titanxp", ("dense", PAPER, HALF, *ALONE), device="titanxp"),
)


@dataclass(frozen=True)
class Goal:
    """What has to be reached: `found` at least `reach`, or at most. limit: what nothing can pass, if there is such."""

    what: str
    limit: float | None
    reach: float
    found: float
    at_least: bool = True

    @property
    def reached(self) -> bool:
        return self.found >= self.reach if self.at_least else self.found <= self.reach


def measure(run: Run, folder: Path) -> BenchRecord:
    """Run one bench into its folder. What stops it is raised, when what was finished is written."""
    outcome = bench(run.options, progress=_print, keep=lambda record: record.write(folder))
    write_bench_tables(outcome.record, folder)
    write_bench_plots(outcome.record, folder)
    write_text_atomic(folder / "command.txt", run.command + "\n")
    if outcome.stopped is not None:
        raise outcome.stopped
    return outcome.record


def _print(step: Step) -> None:
    print(f"  {step.description}", flush=True)


# --- goals ------------------------------------------------------------------------------------------------------


def speed_goals(record: BenchRecord) -> Iterator[Goal]:
    for method in (PAPER, HALF, *ALONE):
        [step] = _rows(record, method, DECODE)
        yield _of_limit(record, step, f"decode step, {method}", 0.95)
    yield from prefill_goals(record)
    [selection] = _rows(record, PAPER, SELECTION)
    yield Goal("selection / dense decoder prefill", 0, 0.03, record.prefill_share(selection) or 0.0, at_least=False)
    yield from length_goals(record)
    yield from memory_goals(record)


def method_goals(record: BenchRecord) -> Iterator[Goal]:
    """What choosing image tokens costs, and how near every method that skips what it says comes to its own bound."""
    for name in ALL:
        method = parse(name)
        for row in _rows(record, name, SELECTION) if method.prunes_tokens else ():
            share = record.prefill_share(row) or 0.0
            yield Goal(f"choosing / dense decoder prefill, {name}", 0, 0.05, share, at_least=False)
        for row in _rows(record, name, DECODE):
            if name != DENSE and not method.accuracy_only:
                yield _of_limit(record, row, f"decode step, {name}", 0.95)


def prefill_goals(record: BenchRecord) -> Iterator[Goal]:
    [prefill] = _rows(record, PAPER, PREFILL)
    yield _of_limit(record, prefill, f"decoder prefill, {prefill.layers} layers, {PAPER}", 0.85)


def length_goals(record: BenchRecord) -> Iterator[Goal]:
    for method in (PAPER, HALF):
        for row in _rows(record, method, END_TO_END):
            ratio = 1 / (record.speedup(row) or 0.0)
            yield Goal(f"end to end, {row.new_tokens} new tokens, {method} / dense", None, 1.02, ratio, at_least=False)


def memory_goals(record: BenchRecord) -> Iterator[Goal]:
    for entry in record.memory:
        if entry.method not in (PAPER, HALF):
            continue
        [row] = _rows(record, entry.method, PREFILL)
        expected = (KEPT + TEXT) * KV_MIB_PER_TOKEN_AND_LAYER * row.layers
        exact = float(entry.kv_cache_mib == expected)
        yield Goal(f"KV cache after prefill is {expected:g} MiB, {entry.method}", None, 1, exact)
        share = (entry.workspace_mib or 0.0) / (FFN_MIB_PER_LAYER * row.layers)
        most = (row.neurons_kept or 0.0) / (row.neurons or 1.0)
        yield Goal(f"extra memory / FFN, {entry.method}", 0, most, share, at_least=False)


def _rows(record: BenchRecord, method: str, phase: str) -> list[BenchRow]:
    return [row for row in record.rows if (row.method, row.phase) == (method, phase)]


def _of_limit(record: BenchRecord, row: BenchRow, what: str, share: float) -> Goal:
    """Over dense on the same cache: over a cache that is copied, what bytes allow is no limit."""
    limit = row.limit_speedup or 0.0
    return Goal(f"{what}, speed-up", limit, share * limit, record.speedup_on_same_cache(row) or 0.0)


def evaluation_goal(work: Path) -> Goal:
    """Seconds of an evaluation beyond those in which the model itself reads and decodes, per such second.

    Of `coremat eval` as it stands. Choosing tokens and neurons is not the model's own.
    """
    loaded = load(BUNDLED)
    generating = Stopwatch(torch.device("cpu"))
    own = loaded.model.generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        with generating.running():
            return own(*args, **kwargs)

    loaded.model.generate = generate
    methods = {spec: parse(spec, prune_layer=loaded.prune_layer) for spec in DEFAULTS}
    folder = work / f"evaluation-{time.strftime('%Y%m%d-%H%M%S')}"
    begun = time.perf_counter()
    evaluate(loaded, ("easyvqa", "shapes"), methods, limit=400, batch_size=32, output=folder)
    whole = time.perf_counter() - begun
    model = generating.seconds - read_samples(folder)["selection_ms"].sum() / 1000
    return Goal("evaluation beyond the model's own prefill and decode", 0, 0.10, whole / model - 1, at_least=False)


def calibration_table() -> Table:
    """How far projections onto a Titan Xp are from the twelve latencies of the paper's Table 3."""
    headings = ("method", "phase", "paper s", "projected s", "off %", "calibrated on it")
    rows = check_against_table3()
    values = [(r.method, r.phase, r.paper_s, r.projected_s, r.error_percent, r.calibrated) for r in rows]
    return Table(
        title="Latencies projected onto a Titan Xp beside the paper's",
        columns=tuple(Column(name, numeric=name not in ("method", "phase", "calibrated on it")) for name in headings),
        rows=tuple(
            (method, phase, f"{paper:g}", mark(f"{projected:.2f}", True), f"{off:+.1f}", "yes" if used else "")
            for method, phase, paper, projected, off, used in values
        ),
        raw_names=headings,
        raw=tuple(values),
        notes=(PROJECTED_NOTE, "decode: 64 tokens. Nothing is fitted to the rows without a yes."),
    )


def goals_table(goals: list[Goal]) -> Table:
    headings = (Column("what", numeric=False), Column("limit"), Column("reach"), Column("found"), Column("reached"))
    values = [(goal.what, goal.limit, goal.reach, goal.found, goal.reached) for goal in goals]
    return Table(
        title="What has to be reached",
        columns=headings,
        rows=tuple(_cells(goal) for goal in goals),
        raw_names=("what", "limit", "reach", "found", "reached"),
        raw=tuple(values),
        notes=(
            "Speed-ups: medians of interleaved runs over dense, against limits on the same cache; limits from bytes "
            "(decode) and operations (prefill).",
        ),
    )


def _cells(goal: Goal) -> tuple[str, ...]:
    sign = "≥" if goal.at_least else "≤"
    limit = "" if goal.limit is None else f"{goal.limit:.3g}"
    return goal.what, limit, f"{sign} {goal.reach:.3g}", f"{goal.found:.3g}", "yes" if goal.reached else "NO"


def main(
    output: Annotated[Path, typer.Option(help="Folder of the records.")],
    work: Annotated[Path, typer.Option(help="Folder of single answers.")] = Path("coremat-runs"),
    only: Annotated[str | None, typer.Option(help="One bench; of the others the records that are there.")] = None,
) -> None:
    """Make the records of speed under `results/reference/`, and say whether the goals are reached."""
    if only is not None and only not in {run.name for run in RUNS}:
        raise typer.BadParameter(str(UnknownNameError("bench", only, [run.name for run in RUNS])))
    records = {}
    for run in RUNS:
        if only in (None, run.name):
            print(run.command, flush=True)
            records[run.name] = measure(run, output / run.name)
        else:
            records[run.name] = BenchRecord.read(output / run.name)
    goals = [*speed_goals(records["speed"]), *prefill_goals(records["speed-12-layers"]), evaluation_goal(work)]
    of_methods = list(method_goals(records["speed-methods"]))
    for table, path in (
        (goals_table(goals), "speed/goals"),
        (goals_table(of_methods), "speed-methods/goals"),
        (calibration_table(), "titanxp/calibration"),
    ):
        write_text_atomic(output / f"{path}.md", to_markdown(table))
        write_text_atomic(output / f"{path}.csv", to_csv(table))
        print(to_markdown(table))


if __name__ == "__main__":
    typer.run(main)
