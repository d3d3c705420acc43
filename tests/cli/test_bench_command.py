"""`coremat bench` as a user types it."""

import json
from pathlib import Path

import pytest
import torch
from said import Run, refused

from coremat.bench.variants import Variant

pytestmark = pytest.mark.usefixtures("quick_machine")

SMALL = ("bench", "--model", "shapes-llava", "--methods", "corematching", "--device", "cpu", "--dtype", "float32")


def test_bench_writes_record_tables_and_plots(run: Run, tmp_path: Path) -> None:
    code, out, err = run(*SMALL, "--new-tokens", 4, "--repeats", 1, "--output", tmp_path)
    assert code == 0, err
    assert "shapes-llava: memory and prefill" in out
    assert "shapes-llava: decoding and end to end" in out
    written = {path.name for path in tmp_path.iterdir()}
    assert {"record.json", "table.md", "table.csv", "table.tex", "phases.csv", "methods.png", "lengths.png"} <= written
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["kind"] == "bench"
    assert record["config"]["image_tokens_kept"] == "given"
    assert {row["method"] for row in record["rows"]} == {"dense", "corematching"}


def test_bench_projects_what_is_not_here(run: Run, tmp_path: Path) -> None:
    code, out, err = run("bench", "--device", "titanxp", "--output", tmp_path)
    assert code == 0, err
    assert "projected" in out
    assert "~" in out
    assert "paper" in out
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert all(row["projected_ms"] is not None and not row["samples_ms"] for row in rows)


def test_bench_lists_devices(run: Run) -> None:
    code, out, _ = run("bench", "--device", "list")
    assert code == 0
    for name in ("titanxp", "rtx6000", "a100", "h100", "h200", "rtx4090"):
        assert name in out


def test_what_was_finished_is_shown_when_memory_runs_out(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, answered = Variant.answer, []

    def answer(*args):
        answered.append(1)
        if len(answered) == 6:  # dense is answered on two caches
            raise torch.OutOfMemoryError("no more")
        return own(*args)

    monkeypatch.setattr(Variant, "answer", answer)
    result = run(*SMALL, "--new-tokens", 2, "--repeats", 3, "--output", tmp_path)
    assert "memory ran out at batch 1, round 2: corematching" in refused(result)
    assert "shapes-llava: memory and prefill" in result[1]
    samples = {
        row["method"]: len(row["samples_ms"]) for row in json.loads((tmp_path / "record.json").read_text())["rows"]
    }
    assert samples == {"dense": 2, "corematching": 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--new-tokens", 0], "new_tokens is 0"),
        (["--batch-size", "1,x"], "--batch-size is '1,x'"),
        (["--image-tokens-kept", "few"], "--image-tokens-kept is 'few'"),
        (["--methods", ","], "--methods is ','"),
        (["--methods", "fst"], "unknown method 'fst'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--device", "cuda:3"], "device is 'cuda:3'"),
        (["--dtype", "int4"], "dtype is 'int4'"),
        (["--device", "titanxp", "--dtype", "bfloat16"], "titanxp has no bfloat16"),
        (["--memory-limit", "much"], "memory limit is 'much'"),
        (["--device", "cpu", "--memory-limit", "12GB"], "memory_limit is 12000000000"),
        (["--weights", "pretrained"], "llava-1.5-7b"),
        (["--layers", 33], "layers is 33; accepted: 1 to 32"),
        (["--device", "titanxp", "--memory-limit", "1MB"], "KV cache"),
    ],
)
def test_bad_input_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch, options: list, words: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert words in refused(run("bench", *options))
