"""The bundled model's architecture, untrained, from a folder on the disk through lmms-eval to a record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from coremat.methods.registry import parse
from coremat.models.load import LoadedModel, load
from coremat.results.record.eval import read_samples
from coremat.tasks.catalogue import HERE
from coremat.tasks.run.runner import evaluate
from coremat.tasks.train_shapes_llava.architecture import build_model, build_processor, build_tokenizer

METHODS = {
    "dense": parse("dense"),
    "corematching": parse("corematching:tokens=20:beta=0.3"),
    "random-tokens": parse("random-tokens:tokens=20"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["is there a red circle?", "list all objects in reading order."])
    build_model(tokenizer).eval().save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load(str(folder), "cpu", "float32")


def test_every_method_on_every_task(loaded: LoadedModel, tmp_path: Path) -> None:
    record = evaluate(loaded, ["easyvqa", "shapes_validation"], METHODS, 5, 3, output=tmp_path)
    samples = read_samples(tmp_path)
    assert len(samples) == 3 * 2 * 5
    assert set(samples.image_tokens) == {144}
    for method, kept in (("dense", 144), ("corematching", 20), ("random-tokens", 20)):
        lines = samples[samples.method == method]
        assert set(lines.image_tokens_kept) == {kept}
        assert {len(tokens) for tokens in lines.kept} == {kept}
    assert {(row.method, row.agreement_with_dense) for row in record.rows} >= {("dense", 100.0)}
    for row in record.rows:
        assert row.neurons_kept == (105 if row.method == "corematching" else row.neurons)
        assert row.first_token_ms > 0


def test_a_batch_answers_as_one_by_one(loaded: LoadedModel, tmp_path: Path) -> None:
    """Also what is drawn at random, which belongs to the sample and not to its place in a batch."""
    for size in (1, 4):
        evaluate(loaded, ["shapes"], METHODS, 8, size, output=tmp_path / str(size))
    alone, together = (read_samples(tmp_path / str(size)) for size in (1, 4))
    assert list(alone.doc_id) == list(together.doc_id)
    assert list(alone.kept) == list(together.kept)
    assert list(alone.answer) == list(together.answer)


def test_lmms_evals_own_command_line(folder: Path, tmp_path: Path) -> None:
    arguments = f"pretrained={folder},method=corematching,tokens=20,beta=0.3,dtype=float32,device=cpu"
    command = [sys.executable, "-m", "lmms_eval", "--model", "coremat", "--model_args", arguments]
    command += ["--tasks", "shapes", "--include_path", str(HERE), "--limit", "3", "--batch_size", "2"]
    command += ["--output_path", str(tmp_path), "--log_samples"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = tmp_path.rglob("*_results.json")
    assert "accuracy,none" in json.loads(results.read_text())["results"]["shapes"]
    (samples,) = tmp_path.rglob("*_samples_shapes.jsonl")
    assert len(samples.read_text().splitlines()) == 3
