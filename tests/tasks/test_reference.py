"""The program behind `results/reference/`: what it keeps of a run, and that its plots and tables come out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
import typer
from fake_answers import FAKE, FakeAnswer, install
from typer.testing import CliRunner

from coremat.methods.registry import DEFAULTS, parse
from coremat.results.record.eval import Record, Row
from coremat.tasks.reproduce import reference
from coremat.tasks.reproduce.reference import Run, budget_methods, layer_methods, measure, neuron_methods

LIMIT = 12


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeAnswer:
    return install(monkeypatch.setattr, FakeAnswer())


@pytest.mark.parametrize("methods", [neuron_methods(), layer_methods(6), budget_methods([2, 4])])
def test_every_method_of_a_sweep_is_one(methods: tuple[str, ...]) -> None:
    assert len({parse(spec) for spec in methods}) >= len(methods) - 1  # beta=1 of core and random differ in name


def test_a_run_keeps_its_record_and_says_its_command(tmp_path: Path) -> None:
    run = Run("default", ("easyvqa", "shapes"), DEFAULTS, LIMIT)
    _, samples = measure(FAKE, run, tmp_path / "work", tmp_path / "kept")
    kept = tmp_path / "kept" / "default"
    assert {path.name for path in kept.iterdir()} == {*reference.KEPT, "command.txt"}
    assert "--limit 12" in (kept / "command.txt").read_text()
    reference.report_default(samples, kept)
    compared = pandas.read_csv(kept / "comparisons.csv")
    assert set(compared["task"]) == {"easyvqa", "shapes"}
    assert (compared["samples"] == LIMIT).all()
    assert pandas.read_csv(kept / "accuracy_by_kind.csv")["samples"].sum() == LIMIT * len(DEFAULTS)


def test_the_sweeps_are_drawn(tmp_path: Path) -> None:
    neurons = Run("neuron-ratio", ("shapes",), neuron_methods(), LIMIT)
    record, samples = measure(FAKE, neurons, tmp_path / "work", tmp_path)
    reference.report_neurons(record, samples, tmp_path)
    layers = Run("prune-layer", ("shapes_validation",), layer_methods(3), LIMIT)
    record, _ = measure(FAKE, layers, tmp_path / "work", tmp_path)
    reference.report_layers(record, tmp_path)
    for name in ("neuron_ratio.png", "prune_layer.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_token_methods_are_drawn_by_where_they_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "COUNTS", (9, 36))
    monkeypatch.setattr(reference, "ANCHORS", ("random-tokens",))
    drawn: list[dict[str, Any]] = []
    plot = reference.plot_panels
    monkeypatch.setattr(
        reference, "plot_panels", lambda frame, path, **options: drawn.append(frame) or plot(frame, path, **options)
    )
    names = ("fastv", "core-tokens", "random-tokens", "uniform-tokens", "pyramiddrop")
    run = Run("tokens-kept", ("shapes",), reference.kept_methods(names), LIMIT)
    record, _ = measure(FAKE, run, tmp_path / "work", tmp_path)
    reference.report_kept(record, tmp_path)
    places = dict(drawn[0][["method", "where"]].to_numpy())
    assert places["uniform-tokens"] == "before the decoder"
    assert places["core-tokens"] == places["fastv:earlier_cache=cut"] == "in the decoder, earlier caches cut"
    assert places["fastv"] == places["pyramiddrop"] == "in the decoder, earlier caches full"
    assert not any(name.endswith("original") for name in places)
    assert (tmp_path / "tokens_kept.png").read_bytes().startswith(b"\x89PNG")


def test_neuron_methods_are_drawn_over_what_they_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[pandas.DataFrame] = []
    monkeypatch.setattr(reference, "plot_panels", lambda frame, path, **options: drawn.append(frame))
    row = Row(method="dense", task="shapes", metric="accuracy", samples=9, score=90.0, stderr=1.0, ffn_read_mib=4.0)
    typed = {"griffin:beta=0.4": 1.6, "two-level:candidates=0.6:beta=0.2": 1.4, "wina:matrices=ffn:keep=0.5": 2.0}
    rows = (row, *(replace(row, method=spec, ffn_read_mib=read) for spec, read in typed.items()))
    reference.report_read(Record("shapes-llava", rows), tmp_path)
    assert drawn[0][["method", "chosen", "read"]].to_numpy().tolist() == [
        ["griffin", "once, for the answer", pytest.approx(40)],
        ["two-level", "token by token", pytest.approx(35)],
        ["wina:matrices=ffn", "token by token", pytest.approx(50)],
    ]


def test_a_calibrated_method_is_run_by_two_commands() -> None:
    calibrate, evaluation = Run("a", ("shapes",), ("dense", "cats:beta=0.2"), 8).command.splitlines()
    assert calibrate == "coremat calibrate cats:beta=0.2 --tasks shapes --limit 256 --output cats.safetensors"
    assert "--methods dense,cats:beta=0.2:calibration=cats.safetensors --limit 8" in evaluation


def test_every_neuron_method_of_the_plot_is_one() -> None:
    methods = reference.read_methods()
    assert len({parse(spec) for spec in methods}) == len(methods)


def test_equal_budgets_are_compared_with_core_tokens(tmp_path: Path) -> None:
    run = Run("token-budget", ("shapes",), budget_methods([2]), LIMIT)
    _, samples = measure(FAKE, run, tmp_path / "work", tmp_path)
    reference.report_budget(samples, tmp_path, [2])
    compared = pandas.read_csv(tmp_path / "comparisons.csv")
    assert set(compared["a"]) == {"core-tokens:tokens=36:prune_layer=2"}
    assert len(compared) == len(reference.BUDGET_NAMES) - 1


def test_one_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tuple(Run(name, ("easyvqa",), ("dense",), 2) for name in ("one", "other"))
    monkeypatch.setattr(reference, "load", lambda name: FAKE)
    monkeypatch.setattr(reference, "runs", lambda loaded: made)
    assert command("--output", tmp_path / "kept", "--work", tmp_path / "work", "--only", "other").exit_code == 0
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"other"}
    refusal = command("--output", tmp_path / "kept", "--only", "othr")
    assert refusal.exit_code == 2
    assert "did you mean 'other'?" in refusal.output


def command(*words: object) -> Any:
    app = typer.Typer()
    app.command()(reference.main)
    return CliRunner().invoke(app, [str(word) for word in words])
