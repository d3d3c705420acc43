"""The program behind `results/reference/`: what it keeps of a run, and that its plots and tables come out."""

from pathlib import Path

import pandas
import pytest
from fake_answers import FAKE, FakeAnswer, install

from coremat.methods import DEFAULT_METHODS, parse_method
from coremat.tasks import reference
from coremat.tasks.reference import Run, budget_methods, layer_methods, measure, neuron_methods

LIMIT = 12


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeAnswer:
    return install(monkeypatch.setattr, FakeAnswer())


@pytest.mark.parametrize("methods", [neuron_methods(), layer_methods(6), budget_methods([2, 4])])
def test_every_method_of_a_sweep_is_one(methods: tuple[str, ...]) -> None:
    assert len({parse_method(spec) for spec in methods}) >= len(methods) - 1  # beta=1 of core and random differ in name


def test_a_run_keeps_its_record_and_says_its_command(tmp_path: Path) -> None:
    run = Run("default", ("easyvqa", "shapes"), DEFAULT_METHODS, LIMIT)
    _, samples = measure(FAKE, run, tmp_path / "work", tmp_path / "kept")
    kept = tmp_path / "kept" / "default"
    assert {path.name for path in kept.iterdir()} == {*reference.KEPT, "command.txt"}
    assert "--limit 12" in (kept / "command.txt").read_text()
    reference.report_default(samples, kept)
    compared = pandas.read_csv(kept / "comparisons.csv")
    assert set(compared["task"]) == {"easyvqa", "shapes"}
    assert (compared["samples"] == LIMIT).all()
    assert pandas.read_csv(kept / "accuracy_by_kind.csv")["samples"].sum() == LIMIT * len(DEFAULT_METHODS)


def test_the_sweeps_are_drawn(tmp_path: Path) -> None:
    neurons = Run("neuron-ratio", ("shapes",), neuron_methods(), LIMIT)
    record, samples = measure(FAKE, neurons, tmp_path / "work", tmp_path)
    reference.report_neurons(record, samples, tmp_path)
    layers = Run("prune-layer", ("shapes_validation",), layer_methods(3), LIMIT)
    record, _ = measure(FAKE, layers, tmp_path / "work", tmp_path)
    reference.report_layers(record, tmp_path)
    for name in ("neuron_ratio.png", "prune_layer.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_equal_budgets_are_compared_with_core_tokens(tmp_path: Path) -> None:
    run = Run("token-budget", ("shapes",), budget_methods([2]), LIMIT)
    _, samples = measure(FAKE, run, tmp_path / "work", tmp_path)
    reference.report_budget(samples, tmp_path, [2])
    compared = pandas.read_csv(tmp_path / "comparisons.csv")
    assert set(compared["a"]) == {"core-tokens:tokens=36:prune_layer=2"}
    assert len(compared) == len(reference.BUDGET_NAMES) - 1
