"""`coremat eval --preset` and `--dry-run` as a user types them."""

from pathlib import Path

import pytest
from said import Run, refused

from coremat.cli import eval as command
from coremat.results.record.bench import BenchRecord
from coremat.results.record.bench_rows import BenchRow

PRESET = ("--preset", "paper-table-2", "--model", "llava-1.5-7b")


def lines(out: str) -> dict[str, list[str]]:
    """The cells of each row by its first."""
    return {cells[0]: cells for cells in map(str.split, out.splitlines()) if cells}


def test_dry_run_of_a_preset(run: Run) -> None:
    code, out, err = run("eval", *PRESET, "--dry-run", "--limit", 10)
    assert code == 0, err
    rows = lines(out)
    assert rows["gqa"] == ["gqa", "lmms-lab-encoder/GQA", "10", "12,578", "0.0677"]
    assert rows["pope"][2:] == ["30", "9,000", "0.255"]
    assert rows["mmvet"][-1] == "needed"
    assert {"dense", "prumerge:tokens=146", "fastv:tokens=144", "corematching"} < set(rows)
    assert rows["all"] == ["all", "480"]
    assert "graded by a judge (--judge-url, --judge-model): mmvet." in err


def test_dry_run_without_a_preset_writes_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("eval", "--tasks", "shapes", "--methods", "dense,core-neurons", "--dry-run")
    assert code == 0
    assert lines(out)["shapes"] == ["shapes", "400", "2,400", "here"]
    assert lines(out)["all"] == ["all", "800"]
    assert not list(tmp_path.iterdir())


def test_methods_that_the_model_cannot_give_are_not_planned(run: Run) -> None:
    code, out, err = run("eval", "--preset", "paper-table-6", "--model", "video-llava-7b", "--dry-run")
    assert code == 0
    assert {"dense", "fastv", "corematching"} < set(lines(out))
    assert not {"prumerge", "prumerge+"} & set(lines(out))
    assert "prumerge+ skipped: prumerge+ reads how a class token" in err


def test_a_bench_gives_the_time(run: Run, tmp_path: Path) -> None:
    step = {"decoder": "eager generate", "batch_size": 1, "layers": 32, "prompt_tokens": 610, "new_tokens": 64}
    times = {"prefill": 500.0, "decode": 10.0}
    rows = tuple(BenchRow(method="dense", phase=phase, samples_ms=(ms,), **step) for phase, ms in times.items())
    BenchRecord("llava-1.5-7b", rows, config={"model_layers": 32}).write(tmp_path)
    asked = ("--tasks", "gqa", "--methods", "dense", "--model", "llava-1.5-7b")
    code, out, _ = run("eval", *asked, "--dry-run", "--bench", tmp_path)
    assert code == 0
    assert lines(out)["dense"] == ["dense", "12,578", "1.89"]
    assert "without --dry-run" in refused(run("eval", *asked, "--bench", tmp_path))


def test_a_preset_is_run_as_if_it_were_typed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything up to the model is as usual; the weights are not asked for here."""

    class ReachedError(Exception):
        pass

    def load(*arguments: object) -> None:
        raise ReachedError

    monkeypatch.setattr("coremat.models.load.load", load)
    said: list[str] = []
    monkeypatch.setattr(command.console, "log", said.append)
    with pytest.raises(ReachedError):
        run("eval", "--preset", "paper-table-4", "--model", "llava-1.5-13b")
    assert said[0].startswith(
        "llava-1.5-13b: dense, prumerge+:tokens=146, fastv:tokens=144, corematching on "
        "docvqa, infovqa, chartqa, ocrbench, ai2d, all questions"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*PRESET, "--tasks", "gqa"), "--preset is 'paper-table-2' beside --tasks or --methods"),
        ((*PRESET, "--methods", "dense"), "accepted: the preset, or these."),
        (("--preset", "paper-table-2"), "model is 'shapes-llava'; accepted with preset paper-table-2: llava-1.5-7b"),
        (("--preset", "paper-table-9"), "unknown preset 'paper-table-9'"),
        (("--dry-run", "--tasks", "gqua"), "unknown task 'gqua'"),
        (("--dry-run", "--methods", "core-neurons:beta=2"), "beta is 2"),
        (("--dry-run", "--model", "llama-3.2-11b-vision", "--methods", "corematching"), "cross-attention"),
        (("--dry-run", "--bench", "none"), "cannot read the record none"),
    ],
)
def test_what_is_refused(run: Run, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(run("eval", *arguments))
