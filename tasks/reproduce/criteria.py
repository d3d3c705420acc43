"""What tells which neurons and which image tokens matter, on a pretrained language model and on a small trained one.

    python -m coremat.tasks.reproduce.criteria --output results/reference

Neurons on SmolLM2-135M, by how near each method stays to the dense model on prompts of its own (`coremat fidelity`);
neurons and image tokens on smol-llava, by the accuracy of its answers; what tells image tokens apart in one decoder
layer, on shapes-llava too. Whatever is fitted is fitted to the prompts and scenes of validation; the runs are on those
of the test. Stopped and started again, it goes on. `results/reference/README.md` says what follows from it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas
import typer

from coremat.errors import UnknownNameError
from coremat.methods.options import kinds_of
from coremat.methods.registry import parse
from coremat.models.known import BUNDLED, SMOL, SMOL_TEXT
from coremat.models.load import LoadedModel, load
from coremat.results.analysis import accuracy_by
from coremat.results.plots.eval import plot_panels
from coremat.results.record.eval import Record, read_samples
from coremat.results.record.fidelity import FidelityRecord
from coremat.results.statistics import clustered_mean
from coremat.tasks.fidelity.questions import questions_of_file
from coremat.tasks.fidelity.run import measure_fidelity
from coremat.tasks.reproduce import reference
from coremat.tasks.reproduce.calibrations import SCENES, Data, calibrate_commands, with_calibration, with_file
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
LENGTHS = (0, 100, 250, 1000)  # prompt tokens, between which answers are counted together
TEXT, NEURONS, TOKENS = "criteria-text", "criteria-neurons", "criteria-tokens"
DENSE_RUN, LAYER = "criteria-dense", "criteria-tokens-shapes"
OTHER_VOTERS = ("core-tokens:voters=text", "core-tokens:voters=last")
IN_A_LAYER = (
    "random-tokens",
    "fastv",
    "projection-tokens",
    "core-tokens",
    *OTHER_VOTERS,
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
    """All that prune image tokens alone to a count that is given, and core tokens by other voters."""
    return ("dense", *at_counts((*reference.token_methods(loaded), *OTHER_VOTERS)))


def at_counts(names: Sequence[str]) -> Iterator[str]:
    """Caches of layers before are cut for all that prune in the decoder, so that equal counts save as much."""
    cut = {name: name + CUT if "earlier_cache" in kinds_of(parse(name)) else name for name in names}
    return (f"{cut[name]}:tokens={count}" for name in names for count in COUNTS)


MODELS = {TEXT: SMOL_TEXT, LAYER: BUNDLED, NEURONS: SMOL, TOKENS: SMOL, DENSE_RUN: SMOL}


def run_of(name: str, loaded: LoadedModel) -> Run:
    """The run of this name. loaded: its model."""
    model = MODELS[name]
    if name == TEXT:
        return Run(name, model, neuron_methods(), Data(file=VALIDATION))
    if name == LAYER:
        return Run(name, model, ("dense", *at_counts(IN_A_LAYER)), limit=SHAPES_LIMIT)
    if name == NEURONS:
        return Run(name, model, neuron_methods(), Data(prompts=64))
    if name == TOKENS:
        return Run(name, model, token_methods(loaded))
    return Run(name, model, ("dense",), tasks=("easyvqa", "shapes"), limit=DENSE_LIMIT)


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
    reference.keep(folder, kept, run.command)
    REPORTS[run.name](folder, kept)


# --- what is read off the runs ----------------------------------------------------------------------------------------


def report_text(folder: Path, kept: Path) -> None:
    """Agreement while decoding, by method and length of the prompt, and over what a token reads."""
    samples = read_samples(folder)
    reference.save(agreement_by_length(samples), kept / "agreement_by_length.csv")
    points = pandas.DataFrame(reference.read_points(FidelityRecord.read(folder).rows, "agreement", "agreement_se"))
    columns = {"x": "read", "y": "score", "by": "method", "panel": "chosen", "error": "error"}
    labels = {"x_label": reference.READ, "y_label": "next token as dense (%)"}
    title = f"Agreement with dense by what a token reads of the FFNs ({SMOL_TEXT})"
    anchors = reference.READ_ANCHORS
    plot_panels(points, kept / "agreement.png", **columns, **labels, title=title, anchor=None, everywhere=anchors)


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
    reference.report_read(Record.read(folder), kept)


def report_tokens(folder: Path, kept: Path) -> None:
    """That caches are cut stands above the panel."""
    reference.report_kept(Record.read(folder), kept, unsaid=CUT)


def report_dense(folder: Path, kept: Path) -> None:
    samples = read_samples(folder)
    reference.save(accuracy_by(samples[samples["task"] == "shapes"], "kind"), kept / "accuracy_by_kind.csv")


REPORTS: Mapping[str, Report] = {
    TEXT: report_text,
    NEURONS: report_neurons,
    TOKENS: report_tokens,
    LAYER: report_tokens,
    DENSE_RUN: report_dense,
}


def main(
    output: Annotated[Path, typer.Option(help="Folder of the records that are kept.")],
    work: Annotated[Path, typer.Option(help="Folder of single answers.")] = Path("coremat-runs/criteria"),
    only: Annotated[str | None, typer.Option(help="One run by its name; all by default.")] = None,
) -> None:
    """Make the runs on criteria under `results/reference/`."""
    if only not in (None, *MODELS):
        raise typer.BadParameter(str(UnknownNameError("run", only, MODELS)))
    for name in MODELS if only is None else (only,):
        loaded = load(MODELS[name])
        run = run_of(name, loaded)
        print(run.command, flush=True)
        measure(loaded, run, work, output)


if __name__ == "__main__":
    typer.run(main)
