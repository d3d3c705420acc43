"""What tells which neurons and which image tokens matter, on a pretrained language model and on a small trained one.

    python -m coremat.tasks.reproduce.criteria --output results/reference

Neurons on SmolLM2-135M, by how near each method stays to the dense model on prompts of its own (`coremat fidelity`);
neurons and image tokens on smol-llava, by the accuracy of its answers; what tells image tokens apart in one decoder
layer, on shapes-llava too. Whatever is fitted is
fitted to the prompts and scenes of validation; the runs are on those of the test. Stopped and started again, it goes
on. `results/reference/README.md` says what follows from it.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas
import typer

from coremat.methods.options import kinds_of
from coremat.methods.registry import modules, parse
from coremat.models.known import BUNDLED, SMOL, SMOL_TEXT
from coremat.models.load import LoadedModel, load
from coremat.names import DENSE
from coremat.results.plots.eval import plot_panels
from coremat.results.record.eval import Record, read_samples, write_text_atomic
from coremat.results.record.fidelity import FidelityRecord
from coremat.results.statistics import clustered_mean
from coremat.runtime.support import given_and_skipped
from coremat.tasks.fidelity.questions import questions_of_file
from coremat.tasks.fidelity.run import measure_fidelity
from coremat.tasks.reproduce.calibrations import SCENES, Data, calibrate_commands, with_calibration, with_file
from coremat.tasks.reproduce.reference import (
    READ_ANCHORS,
    accuracies,
    chosen,
    draw_panels,
    kind_of,
    report_read,
    save,
    when_chosen,
    where,
)
from coremat.tasks.run.runner import evaluate

PROMPTS = Path(__file__).parent / "prompts"
VALIDATION, TEST = PROMPTS / "validation.jsonl", PROMPTS / "test.jsonl"
NEW_TOKENS, TEXT_LIMIT = 48, 32
IMAGE_LIMIT, DENSE_LIMIT, SHAPES_LIMIT, BATCH_SIZE = 120, 600, 400, 20
COUNTS = (16, 36, 72)  # of 144 image tokens: a ninth, a quarter, a half
SHARES = (0.2, 0.4, 0.6)
FIRST_DENSE = ":layer_shares=first-dense"
CUT = ":earlier_cache=cut"
PER_ANSWER = (
    "core-neurons:beta={}",
    "core-neurons:beta={}" + FIRST_DENSE,
    "griffin:beta={}",
    "griffin:beta={}" + FIRST_DENSE,
    "energy-neurons:beta={}",
    "energy-neurons:weighted=true:beta={}",
    "compensated-neurons:beta={}",
    "random-neurons:beta={}",
)
PER_TOKEN = (
    "teal:beta={}",
    "wina:matrices=ffn:keep={}",
    "predictor:rank=32:beta={}",
    "oracle-neurons:beta={}",
)
TWO_LEVELS = ((0.4, 0.1), (0.8, 0.2), (0.8, 0.5))  # 20, 40 and 60 % of the bytes
CATS = (0.1, 0.4)  # 40 and 60 % of the bytes: the gate is read whole
KEPT = ("record.json", "table.md", "table.csv", "table.tex")
LENGTHS = (0, 100, 250, 1000)  # prompt tokens, between which answers are counted together
TEXT, NEURONS, TOKENS = "criteria-text", "criteria-neurons", "criteria-tokens"
DENSE_RUN, LAYER = "criteria-dense", "criteria-tokens-shapes"
IN_A_LAYER = (
    "random-tokens",
    "fastv",
    "projection-tokens",
    "core-tokens",
    "core-tokens:voters=text",
    "core-tokens:voters=last",
    "fewest-core-tokens",
    "spread-core-tokens",
)

Report = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Run:
    """methods: as they would be typed, but for their calibrations; data: what these are made on."""

    name: str
    model: str
    methods: tuple[str, ...]
    data: Data = SCENES
    tasks: tuple[str, ...] = ("shapes",)
    limit: int = IMAGE_LIMIT

    @property
    def command(self) -> str:
        """With those before it that make calibrations."""
        made = calibrate_commands(self.methods, self.model, self.data)
        asked = f"--model {self.model} --methods {','.join(map(with_file, self.methods))}"
        if self.name == TEXT:
            last = f"coremat fidelity {asked} --prompts {TEST.name} --limit {TEXT_LIMIT} --new-tokens {NEW_TOKENS}"
        else:
            last = f"coremat eval {asked} --tasks {','.join(self.tasks)} --limit {self.limit} --batch-size {BATCH_SIZE}"
        return "\n".join([*made, last])


def neuron_methods() -> tuple[str, ...]:
    """Each at a fifth, two and three fifths of the FFN's bytes."""
    shares = [kind.format(share) for kind in (*PER_ANSWER, *PER_TOKEN) for share in SHARES]
    pairs = (f"two-level:candidates={candidates}:beta={beta}" for candidates, beta in TWO_LEVELS)
    return ("dense", *shares, *pairs, *(f"cats:beta={beta}" for beta in CATS))


def token_methods(loaded: LoadedModel) -> tuple[str, ...]:
    """All that prune image tokens alone to a count that is given, those in the decoder by what becomes of the caches of
    the layers before: cut for all, so that at equal counts as much is saved."""
    there, _ = given_and_skipped(loaded.model, {name: parse(name) for name in modules()})
    found = {
        name: method
        for name, method in there.items()
        if method.prunes_tokens and not method.prunes_neurons and "tokens" in kinds_of(method)
    }
    cut = {name: CUT if "earlier_cache" in kinds_of(method) else "" for name, method in found.items()}
    more = {"core-tokens:voters=text": CUT, "core-tokens:voters=last": CUT}
    return ("dense", *(f"{name}{rest}:tokens={n}" for name, rest in (cut | more).items() for n in COUNTS))


def text_run() -> Run:
    return Run(TEXT, SMOL_TEXT, neuron_methods(), Data(file=VALIDATION))


def image_runs(loaded: LoadedModel) -> tuple[Run, ...]:
    return (
        Run(NEURONS, SMOL, neuron_methods(), Data(prompts=64)),
        Run(TOKENS, SMOL, token_methods(loaded)),
        Run(DENSE_RUN, SMOL, ("dense",), tasks=("easyvqa", "shapes"), limit=DENSE_LIMIT),
    )


def shapes_run() -> Run:
    """What is read off one decoder layer, on the other bundled model, at its own `prune_layer`."""
    return Run(LAYER, BUNDLED, ("dense", *at_counts(IN_A_LAYER)), limit=SHAPES_LIMIT)


def at_counts(names: Sequence[str]) -> Iterator[str]:
    return (f"{name}{CUT}:tokens={count}" for name in names for count in COUNTS)


def measure(loaded: LoadedModel, run: Run, work: Path, output: Path) -> None:
    """Run in `work`, going on where it was stopped, and copy what is kept to `output`."""
    folder, kept = work / run.name, output / run.name
    calibrations = work / f"calibrations-{run.model}"
    methods = {spec: with_calibration(spec, loaded, calibrations, run.data) for spec in run.methods}
    if run.name == TEXT:
        asked = questions_of_file(TEST, TEXT_LIMIT, loaded.preprocessing, takes_images=False)
        measure_fidelity(loaded, asked, methods, NEW_TOKENS, TEXT_LIMIT, output=folder)
    else:
        evaluate(loaded, run.tasks, methods, run.limit, BATCH_SIZE, 0, folder)
    kept.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(folder / name, kept / name)
    write_text_atomic(kept / "command.txt", run.command + "\n")
    if run.name in REPORTS:
        REPORTS[run.name](folder, kept)


# --- what is read off the runs ----------------------------------------------------------------------------------------


def report_text(folder: Path, kept: Path) -> None:
    """Agreement while decoding, by method and length of the prompt, and over what a token reads."""
    samples = read_samples(folder)
    save(agreement_by_length(samples), kept / "agreement_by_length.csv")
    rows = FidelityRecord.read(folder).rows
    dense = next(row.ffn_read_mib for row in rows if row.method == DENSE)
    points: list[dict[str, Any]] = [
        {
            "read": 100 * row.ffn_read_mib / dense,
            "agreement": row.agreement,
            "error": row.agreement_se,
            "method": kind_of(row.method),
            "chosen": when_chosen(row.method),
        }
        for row in rows
        if row.method != DENSE and row.ffn_read_mib is not None and dense
    ]
    columns = {"x": "read", "y": "agreement", "by": "method", "panel": "chosen", "error": "error"}
    labels = {"x_label": "FFN bytes read per token (% of dense)", "y_label": "next token as dense (%)"}
    title = f"Agreement with dense by what a token reads of the FFNs ({SMOL_TEXT})"
    path = kept / "agreement.png"
    plot_panels(pandas.DataFrame(points), path, **columns, **labels, title=title, anchor=None, everywhere=READ_ANCHORS)


def agreement_by_length(samples: pandas.DataFrame) -> pandas.DataFrame:
    """Of the tokens after the first, which the dense prefill gives: how many are as dense has them, in per cent, and
    their KL, with standard errors over questions."""
    decoded = samples[samples["kl"].map(len) > 1]
    bins = pandas.cut(decoded["prompt_tokens"], LENGTHS, labels=[f"up to {most}" for most in LENGTHS[1:]])
    parts = pandas.concat([decoded.assign(prompt=bins.astype(str)), decoded.assign(prompt="all")])
    return pandas.DataFrame(
        {
            "method": method,
            "prompt": prompt,
            "questions": len(part),
            **_mean(part, "agreement", 100),
            **_mean(part, "kl"),
        }
        for (method, prompt), part in parts.groupby(["method", "prompt"], sort=False)
    )


def _mean(answers: pandas.DataFrame, name: str, scale: float = 1) -> dict[str, float | None]:
    sums = [scale * sum(values[1:]) for values in answers[name]]
    mean, error = clustered_mean(sums, [len(values) - 1 for values in answers[name]])
    return {name: mean, f"{name}_se": error}


def report_neurons(folder: Path, kept: Path) -> None:
    report_read(Record.read(folder), kept)


def report_tokens(folder: Path, kept: Path) -> None:
    """As `report_kept` has it; that caches are cut stands above the panel."""
    record = Record.read(folder)
    points: list[dict[str, Any]] = [
        {
            "kept": row.image_tokens_kept,
            "score": row.score,
            "error": row.stderr,
            "method": name.replace(CUT, ""),
            "where": where(parse(row.method)),
        }
        for row in accuracies(record)
        if (name := row.method.rpartition(":tokens=")[0])
    ]
    title = f"Accuracy by image tokens kept (shapes, {record.model})"
    draw_panels(record, points, kept / "tokens_kept.png", title, "image tokens kept of 144", ("random-tokens",))


REPORTS: Mapping[str, Report] = {
    TEXT: report_text,
    NEURONS: report_neurons,
    TOKENS: report_tokens,
    LAYER: report_tokens,
}


def main(
    output: Annotated[Path, typer.Option(help="Folder of the records that are kept.")],
    work: Annotated[Path, typer.Option(help="Folder of single answers.")] = Path("coremat-runs/criteria"),
    only: Annotated[str | None, typer.Option(help="One run by its name; all by default.")] = None,
) -> None:
    """Make the runs on criteria under `results/reference/`."""
    if only in (None, TEXT):
        _make(load(SMOL_TEXT), (text_run(),), work, output)
    if only in (None, LAYER):
        _make(load(BUNDLED), (shapes_run(),), work, output)
    if only not in (TEXT, LAYER):
        loaded = load(SMOL)
        _make(loaded, chosen(image_runs(loaded), only), work, output)


def _make(loaded: LoadedModel, runs: Sequence[Run], work: Path, output: Path) -> None:
    for run in runs:
        print(run.command, flush=True)
        measure(loaded, run, work, output)


if __name__ == "__main__":
    typer.run(main)
