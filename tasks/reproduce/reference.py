"""The measured runs under `results/reference`.

    python -m coremat.tasks.reproduce.reference --output results/reference

Runs of the bundled model, their records, and what README reads off them: comparisons with paired intervals, accuracy
by kind and length of answer, and plots. Stopped and started again, it goes on. Single answers
(`samples.jsonl`) stay in the working folder: the records and the tables made from them are what is kept.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas
import typer

from coremat.errors import UnknownNameError
from coremat.methods.base import ANY_DEPTH, Method
from coremat.methods.calibrated import Calibrated
from coremat.methods.options import kinds_of
from coremat.methods.registry import DEFAULTS, modules, parse
from coremat.models.known import BUNDLED
from coremat.models.load import LoadedModel, load
from coremat.names import DENSE
from coremat.results.analysis import accuracy_by, compare, with_answer_length
from coremat.results.plots.eval import plot_panels, plot_sweep
from coremat.results.record.eval import Record, Row, read_samples, write_text_atomic
from coremat.results.record.fidelity import FidelityRow
from coremat.runtime.support import given_and_skipped
from coremat.tasks.reproduce.calibrations import calibrate_commands, with_calibration, with_file
from coremat.tasks.run.runner import evaluate

RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)
BATCH_SIZE = 64
SWEEP_LIMIT = 1200  # questions of each point of a sweep, half of the test split
METHODS_LIMIT = 400  # questions of each task for a table of all methods
KEPT_LIMIT = 400
COUNTS = (9, 18, 36, 72)
READ_SHARES = (0.1, 0.2, 0.4, 0.6)
NEURON_KINDS = (
    "core-neurons:beta={}",
    "griffin:beta={}",
    "energy-neurons:beta={}",
    "energy-neurons:weighted=true:beta={}",
    "cats:beta={}",
    "teal:beta={}",
    "wina:matrices=ffn:keep={}",
    "predictor:rank=32:beta={}",
    "random-neurons:beta={}",
    "oracle-neurons:beta={}",
)
TWO_LEVELS = ((0.2, 0.05), (0.4, 0.1), (0.6, 0.2), (0.8, 0.4))
READ = "FFN bytes read per token (% of dense)"
READ_ANCHORS = ("random-neurons", "oracle-neurons")
ANCHORS = ("random-tokens", "downsample")  # drawn in every panel of the plot of token methods
ORIGINAL = ":positions=original"
OTHER_SETTINGS = (
    *(f"{name}{ORIGINAL}" for name in ("uniform-tokens", "visionzip", "prumerge+", "divprune")),
    *(f"{name}:earlier_cache=full" for name in ("core-tokens", "random-tokens")),
    "fastv:earlier_cache=cut",
)
BUDGET = 36  # image tokens, a quarter of 144
KEPT = ("record.json", "table.md", "table.csv", "table.tex")


@dataclass(frozen=True)
class Run:
    """One evaluation: `methods` as they would be typed after --methods."""

    name: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    limit: int | None = None

    @property
    def command(self) -> str:
        """With those before it that make calibrations."""
        evaluation = (
            f"coremat eval --tasks {','.join(self.tasks)} --methods {','.join(map(with_file, self.methods))} "
            f"--limit {self.limit or 'all'} --batch-size {BATCH_SIZE}"
        )
        return "\n".join([*calibrate_commands(self.methods), evaluation])


BUDGET_NAMES = (
    "core-tokens",
    "random-tokens",
    "attention-tokens",
    "projection-tokens",
    "fewest-core-tokens",
    "core-tokens:voters=text",
    "core-tokens:voters=last",
)


def neuron_methods() -> tuple[str, ...]:
    """Core neurons from the second token on, in the prefill too (from the second layer on), and random ones."""
    in_prefill = "core-neurons:beta={}:prefill_from=1"
    kinds = ("core-neurons:beta={}", in_prefill, "random-neurons:beta={}")
    return ("dense", *(kind.format(ratio) for kind in kinds for ratio in RATIOS))


def layer_methods(layers: int) -> tuple[str, ...]:
    names = ("corematching", "core-tokens", "core-tokens:voters=text", "random-tokens")
    return ("dense", *(f"{name}:prune_layer={layer}" for name in names for layer in range(1, layers)))


def budget_methods(prune_layers: Sequence[int]) -> tuple[str, ...]:
    return ("dense", *(at_budget(name, layer) for layer in prune_layers for name in BUDGET_NAMES))


def token_methods(loaded: LoadedModel) -> tuple[str, ...]:
    """All that prune image tokens alone, to a count that is given."""
    found = {name: parse(name) for name in every_method(loaded)}
    return tuple(
        name
        for name, method in found.items()
        if method.prunes_tokens and not method.prunes_neurons and "tokens" in kinds_of(method)
    )


def read_methods() -> tuple[str, ...]:
    """Neuron methods at several shares; those that choose for each token too, and their bounds."""
    pairs = (f"two-level:candidates={candidates}:beta={beta}" for candidates, beta in TWO_LEVELS)
    return ("dense", *(kind.format(share) for kind in NEURON_KINDS for share in READ_SHARES), *pairs)


def every_method(loaded: LoadedModel) -> tuple[str, ...]:
    """Those that the bundled model can run, once calibrated, and not what is for timing only."""
    methods = {name: parse(name, prune_layer=loaded.prune_layer) for name in modules()}
    given, _ = given_and_skipped(loaded.model, methods)
    return tuple(name for name, method in methods.items() if name in given or isinstance(method, Calibrated))


def kept_methods(names: Sequence[str]) -> tuple[str, ...]:
    """Each as its authors have positions and caches; a few with the others."""
    return ("dense", *(f"{name}:tokens={count}" for name in (*names, *OTHER_SETTINGS) for count in COUNTS))


def where(method: Method) -> str:
    """Where image tokens leave, and what becomes of the caches of the layers that have seen them: of equal counts, what
    is saved differs by that."""
    if method.before_the_decoder:
        return "before the decoder"
    caches = {stage.earlier_cache for stage in method.pruning_stages(ANY_DEPTH)}
    return f"in the decoder, earlier caches {' and '.join(caches)}"


def at_budget(name: str, layer: int) -> str:
    return f"{name}:tokens={BUDGET}:prune_layer={layer}"


def runs(loaded: LoadedModel) -> tuple[Run, ...]:
    layers = loaded.model.config.get_text_config().num_hidden_layers
    return (
        Run("prune-layer", ("shapes_validation",), layer_methods(layers)),
        Run("default", ("easyvqa", "shapes"), DEFAULTS),
        Run("neuron-ratio", ("shapes",), neuron_methods(), SWEEP_LIMIT),
        Run("methods", ("easyvqa", "shapes"), every_method(loaded), METHODS_LIMIT),
        Run("tokens-kept", ("shapes",), kept_methods(token_methods(loaded)), KEPT_LIMIT),
        Run("ffn-read", ("shapes",), read_methods(), KEPT_LIMIT),
        Run("token-budget", ("shapes",), budget_methods(sorted({2, loaded.prune_layer})), SWEEP_LIMIT),
    )


def measure(loaded: LoadedModel, run: Run, work: Path, output: Path) -> tuple[Record, pandas.DataFrame]:
    """Evaluate in `work`, going on where it was stopped, and copy what is kept to `output`."""
    folder, kept = work / run.name, output / run.name
    methods = {spec: with_calibration(spec, loaded, work / "calibrations") for spec in run.methods}
    record = evaluate(loaded, run.tasks, methods, run.limit, BATCH_SIZE, 0, folder)
    keep(folder, kept, run.command)
    return record, read_samples(folder)


def keep(folder: Path, kept: Path, command: str) -> None:
    """Copy of a run's folder what is committed, and say how it was made."""
    kept.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(folder / name, kept / name)
    write_text_atomic(kept / "command.txt", command + "\n")


# --- what README reads off the runs -------------------------------------------------------------------------


def save(frame: pandas.DataFrame, path: Path) -> None:
    write_text_atomic(path, frame.to_csv(index=False, float_format="%.2f"))


def report_default(samples: pandas.DataFrame, folder: Path) -> None:
    shapes = samples[samples["task"] == "shapes"]
    save(accuracy_by(shapes, "kind"), folder / "accuracy_by_kind.csv")
    save(accuracy_by(with_answer_length(shapes), "answer_tokens"), folder / "accuracy_by_answer_length.csv")
    pairs = [("core-tokens", "random-tokens"), ("core-neurons", "random-neurons"), ("dense", "corematching")]
    frames = [compare(part, pairs).assign(task=task) for task, part in samples.groupby("task", sort=False)]
    save(pandas.concat(frames), folder / "comparisons.csv")
    knees = samples.dropna(subset=["knees_differ"]).groupby(["method", "task"], sort=False)["knees_differ"].mean()
    save((100 * knees.astype(float)).rename("knees_differ_percent").reset_index(), folder / "knees.csv")


def report_budget(samples: pandas.DataFrame, folder: Path, prune_layers: Sequence[int]) -> None:
    first, *others = BUDGET_NAMES
    pairs = [(at_budget(first, layer), at_budget(other, layer)) for layer in prune_layers for other in others]
    save(compare(samples, pairs), folder / "comparisons.csv")


def report_neurons(record: Record, samples: pandas.DataFrame, folder: Path) -> None:
    save(accuracy_by(with_answer_length(samples), "answer_tokens"), folder / "accuracy_by_answer_length.csv")
    points = []
    for row in accuracies(record):
        name, _, options = row.method.partition(":beta=")
        if options:
            ratio, _, prefill = options.partition(":")
            label = f"{name}, prefill too" if prefill else name
            points.append({"ratio": float(ratio), "score": row.score, "error": row.stderr, "neurons": label})
    title = "Accuracy by share of neurons kept while decoding (shapes)"
    draw(record, points, folder / "neuron_ratio.png", title, x_label="neurons kept (share of each FFN)")


def report_layers(record: Record, folder: Path) -> None:
    points = [
        {"layer": int(row.method.rsplit("=", 1)[1]), "score": row.score, "error": row.stderr, "method": name}
        for row in accuracies(record)
        if (name := row.method.rpartition(":prune_layer=")[0])
    ]
    title = "Accuracy by pruning layer (shapes, validation)"
    draw(record, points, folder / "prune_layer.png", title, x_label="decoder layers that see every token")


def report_kept(record: Record, folder: Path, unsaid: str = "") -> None:
    """The lines people look for: every method that prunes tokens, at the same counts, with chance among them. unsaid:
    what is left out of their names."""
    points: list[dict[str, Any]] = [
        {
            "kept": row.image_tokens_kept,
            "score": row.score,
            "error": row.stderr,
            "method": name.replace(unsaid, ""),
            "where": where(parse(row.method)),
        }
        for row in accuracies(record)
        if (name := row.method.rpartition(":tokens=")[0]) and not name.endswith(ORIGINAL)
    ]
    title = f"Accuracy by image tokens kept ({_what(record)})"
    draw_panels(record, points, folder / "tokens_kept.png", title, "image tokens kept of 144", ANCHORS)


def report_read(record: Record, folder: Path) -> None:
    """Accuracy over what a token reads of the FFNs, a line for each way of choosing neurons."""
    title = f"Accuracy by what a token reads of the FFNs ({_what(record)})"
    draw_panels(
        record, read_points(accuracies(record), "score", "stderr"), folder / "ffn_read.png", title, READ, READ_ANCHORS
    )


def read_points(rows: Sequence[Row | FidelityRow], score: str, error: str) -> list[dict[str, Any]]:
    """What each method has over the bytes that a token reads, in % of dense. score, error: fields of the rows."""
    dense = next(row.ffn_read_mib for row in rows if row.method == DENSE)
    return [
        {
            "read": 100 * row.ffn_read_mib / dense,
            "score": getattr(row, score),
            "error": getattr(row, error),
            "method": kind_of(row.method),
            "chosen": when_chosen(row.method),
        }
        for row in rows
        if row.method != DENSE and row.ffn_read_mib is not None and dense
    ]


def _what(record: Record) -> str:
    return "shapes" if record.model == BUNDLED else f"shapes, {record.model}"


def when_chosen(spec: str) -> str:
    """Of a method as typed that prunes neurons or inputs: once, if the neurons of the answer are all that is read."""
    method = parse(spec)
    once = method.takes("neurons") and not method.takes("reads")
    return "once, for the answer" if once else "token by token"


def kind_of(spec: str) -> str:
    """A method as typed, without the option that says how much it keeps."""
    name, *options = spec.split(":")
    return ":".join([name, *(one for one in options if one.partition("=")[0] not in ("beta", "keep", "candidates"))])


def accuracies(record: Record) -> list[Row]:
    return [row for row in record.rows if row.metric == "accuracy"]


def draw(record: Record, points: list[dict[str, Any]], path: Path, title: str, x_label: str) -> None:
    """Scores over what varies (a point's first key), a line for each kind (its last), the dense score dashed."""
    x, *_, by = points[0]
    dense = next(row.score for row in accuracies(record) if row.method == DENSE)
    labels = {"title": title, "x_label": x_label, "y_label": "accuracy (%)"}
    plot_sweep(pandas.DataFrame(points), path, x=x, y="score", by=by, error="error", anchor=dense, **labels)


def draw_panels(
    record: Record, points: list[dict[str, Any]], path: Path, title: str, x_label: str, everywhere: Sequence[str]
) -> None:
    """The same for more lines than one picture holds, in a panel for each value of a point's last key."""
    x, *_, by, panel = points[0]
    dense = next(row.score for row in accuracies(record) if row.method == DENSE)
    labels = {"title": title, "x_label": x_label, "y_label": "accuracy (%)"}
    frame = pandas.DataFrame(points)
    columns = {"x": x, "y": "score", "by": by, "panel": panel, "error": "error"}
    plot_panels(frame, path, **columns, anchor=dense, everywhere=everywhere, **labels)


def main(
    output: Annotated[Path, typer.Option(help="Folder of the records that are kept.")],
    work: Annotated[Path, typer.Option(help="Folder of single answers.")] = Path("coremat-runs/reference"),
    only: Annotated[str | None, typer.Option(help="One run by its name; all by default.")] = None,
) -> None:
    """Make the measured runs under `results/reference/`."""
    loaded = load(BUNDLED)
    for run in chosen(runs(loaded), only):
        print(run.command, flush=True)
        record, samples = measure(loaded, run, work, output)
        report(run, record, samples, output / run.name, sorted({2, loaded.prune_layer}))


def chosen(there: Sequence[Run], only: str | None) -> list[Run]:
    """The run of this name, or all of them."""
    found = [run for run in there if only in (None, run.name)]
    if not found:
        raise typer.BadParameter(str(UnknownNameError("run", only, [run.name for run in there])))
    return found


def report(run: Run, record: Record, samples: pandas.DataFrame, folder: Path, prune_layers: Sequence[int]) -> None:
    """What README reads off this run."""
    if run.name == "default":
        report_default(samples, folder)
    elif run.name == "tokens-kept":
        report_kept(record, folder)
    elif run.name == "ffn-read":
        report_read(record, folder)
    elif run.name == "token-budget":
        report_budget(samples, folder, prune_layers)
    elif run.name == "neuron-ratio":
        report_neurons(record, samples, folder)
    elif run.name == "prune-layer":
        report_layers(record, folder)


if __name__ == "__main__":
    typer.run(main)
