"""Fidelity runs of a tiny model of text: what is journalled and recorded, stops and kills, questions left out."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import context
from text_model import save_text_model

from coremat.errors import DataError, OutputError, UnsupportedError
from coremat.fidelity import measure
from coremat.generate import prepare
from coremat.methods.registry import parse
from coremat.models.load import LoadedModel, load
from coremat.progress import Step
from coremat.results.record.fidelity import FidelityRecord
from coremat.tasks.fidelity import run as run_module
from coremat.tasks.fidelity.questions import Questions, questions_of_file
from coremat.tasks.fidelity.run import measure_fidelity
from coremat.tasks.prompt_file import asked

NAMES = ("dense", "core-neurons", "griffin", "random-neurons")
FILES = ("samples.jsonl", "record.json", "table.md", "table.csv", "positions.csv", "kl.png", "positions.png")
TEXTS = ["one two three", "be brief one", "three two", "two two two one", "one", "system be one", "user two"]
NEW = 6


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(str(save_text_model(tmp_path_factory.mktemp("text"))))


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "GROUP", 3)


def write_prompts(folder: Path, texts: list[str] = TEXTS) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts))
    return path


def questions(loaded: LoadedModel, folder: Path, limit: int = 64) -> Questions:
    return questions_of_file(folder / "prompts.jsonl", limit, loaded.preprocessing, False)


def run(loaded: LoadedModel, folder: Path, output: Path, **changes: Any) -> FidelityRecord:
    methods = {name: parse(name) for name in changes.pop("names", NAMES)}
    return measure_fidelity(loaded, questions(loaded, folder), methods, output=output, **{"new_tokens": NEW} | changes)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_lines_are_what_is_measured_of_each_question_alone(loaded: LoadedModel, tmp_path: Path) -> None:
    write_prompts(tmp_path)
    record = run(loaded, tmp_path, tmp_path / "out")
    lines = lines_of(tmp_path / "out")
    assert [(line["method"], line["doc_id"]) for line in lines] == [(name, n) for name in NAMES for n in range(1, 8)]
    for number, text in enumerate(TEXTS, 1):
        inputs = prepare(loaded, [asked(text, [])])
        for name, found in measure(loaded.model, inputs, NAMES[:3], NEW).items():
            [line] = [line for line in lines if (line["method"], line["doc_id"]) == (name, number)]
            assert line["kl"] == found.kl.tolist()
            assert line["nll"] == found.nll.tolist()
            assert line["agreement"] == found.agree.double().tolist()
            assert line["first_difference"] == found.first_difference
            assert line["question"] == text
    dense = record.rows[0]
    assert (dense.method, dense.source, dense.questions) == ("dense", "prompts.jsonl", 7)
    assert (dense.kl, dense.kl_se, dense.agreement, dense.same_share) == (0, 0, 100, 100)
    assert FidelityRecord.read(tmp_path / "out") == record
    assert all((tmp_path / "out" / name).stat().st_size for name in FILES)


def test_dense_is_always_there_and_options_are_other_methods(loaded: LoadedModel, tmp_path: Path) -> None:
    write_prompts(tmp_path, TEXTS[:2])
    record = run(loaded, tmp_path, tmp_path / "out", names=("griffin", "griffin:beta=0.9"))
    assert [row.method for row in record.rows] == ["dense", "griffin", "griffin:beta=0.9"]
    assert record.rows[1].ffn_read_mib < record.rows[2].ffn_read_mib < record.rows[0].ffn_read_mib


# --- stopped, killed --------------------------------------------------------------------------------------------------


def stop_after(lines: int, stop: Callable[[], None]) -> Callable[[Step], None]:
    """A progress that stops the run once so many lines are journalled."""
    done = [0]

    def progress(step: Step) -> None:
        done[0] += step.advance
        if done[0] >= lines:
            stop()

    return progress


def interrupt() -> None:
    raise KeyboardInterrupt


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("lines", [1, 5, 17, 27])
def test_a_stopped_run_ends_as_one_that_was_not(loaded: LoadedModel, tmp_path: Path, lines: int) -> None:
    write_prompts(tmp_path)
    run(loaded, tmp_path, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(loaded, tmp_path, tmp_path / "stopped", progress=stop_after(lines, interrupt))
    assert len(lines_of(tmp_path / "stopped")) == lines
    steps: list[Step] = []
    run(loaded, tmp_path, tmp_path / "stopped", progress=steps.append)
    assert sum(step.advance for step in steps) == len(NAMES) * len(TEXTS) == steps[-1].total
    assert sum(step.advance for step in steps if step.description == "asked before") == lines
    for name in FILES:
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def killed_run(model: str, folder: Path, lines: int) -> None:
    torch.set_num_threads(1)
    run(load(model), folder, folder / "killed", progress=stop_after(lines, kill))


def test_a_killed_run_loses_what_was_running(loaded: LoadedModel, tmp_path: Path) -> None:
    write_prompts(tmp_path)
    process = context().Process(target=killed_run, args=(loaded.name, tmp_path, 4))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(lines_of(tmp_path / "killed")) == 4
    with (tmp_path / "killed" / "samples.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')
    run(loaded, tmp_path, tmp_path / "killed")
    run(loaded, tmp_path, tmp_path / "whole")
    for name in ("samples.jsonl", "record.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_run_asks_nothing_again(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prompts(tmp_path)
    record = run(loaded, tmp_path, tmp_path / "out")
    monkeypatch.setattr(run_module, "apply", None)
    assert run(loaded, tmp_path, tmp_path / "out") == record


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"new_tokens": 5}, "new_tokens: 6 there, 5 here"),
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"names": ("dense", "griffin")}, "core-neurons"),
    ],
)
def test_another_run_is_refused(loaded: LoadedModel, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_prompts(tmp_path, TEXTS[:1])
    run(loaded, tmp_path, tmp_path / "out")
    before = (tmp_path / "out" / "samples.jsonl").read_bytes()
    with pytest.raises(OutputError, match=said):
        run(loaded, tmp_path, tmp_path / "out", **changes)
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() == before


def test_other_prompts_are_another_run(loaded: LoadedModel, tmp_path: Path) -> None:
    write_prompts(tmp_path, TEXTS[:1])
    run(loaded, tmp_path, tmp_path / "out")
    write_prompts(tmp_path, TEXTS[1:2])
    with pytest.raises(OutputError, match="holds another run"):
        run(loaded, tmp_path, tmp_path / "out")


# --- left out ---------------------------------------------------------------------------------------------------------


def test_bad_lines_are_named_and_the_others_asked(loaded: LoadedModel, tmp_path: Path) -> None:
    good = json.dumps({"question": "one two"})
    bad = ["{", json.dumps({"question": 3}), json.dumps({"question": " "}), json.dumps(["one"])]
    bad += [json.dumps({"question": "one", "image": "a.png"}), json.dumps({"text": "one"})]
    (tmp_path / "prompts.jsonl").write_text("\n".join([good, "", *bad, good]) + "\n")
    said: list[str] = []
    record = run(loaded, tmp_path, tmp_path / "out", log=said.append)
    assert [row.questions for row in record.rows] == [2] * len(NAMES)
    assert [one["doc_id"] for one in record.config["broken"]] == [3, 4, 5, 6, 7, 8]
    assert len(said) == 6
    assert said[0].startswith("question 3 of prompts.jsonl is left out: line 3 of ")
    assert "the model reads text alone" in said[4]
    assert "left out: 6: prompts.jsonl 3 (" in (tmp_path / "out" / "table.md").read_text()


def test_no_prompt_left_is_an_error(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("{\n[]\n")
    with pytest.raises(DataError, match=r"no question is left of 2; the first: line 1 of .*accepted"):
        run(loaded, tmp_path, tmp_path / "out")
    (tmp_path / "prompts.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no prompt"):
        questions(loaded, tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        questions(loaded, tmp_path / "nowhere")


def test_an_empty_answer_is_left_out(loaded: LoadedModel, tmp_path: Path) -> None:
    write_prompts(tmp_path, TEXTS[:3])
    first = run(loaded, tmp_path, tmp_path / "all", names=("dense",))
    assert first.rows[0].questions == 3
    inputs = prepare(loaded, [asked(TEXTS[1], [])])
    token = int(loaded.model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1])
    kept, loaded.model.generation_config.eos_token_id = loaded.model.generation_config.eos_token_id, token
    try:
        record = run(loaded, tmp_path, tmp_path / "out", names=("dense",))
    finally:
        loaded.model.generation_config.eos_token_id = kept
    assert record.rows[0].questions < 3
    assert {"source": "prompts.jsonl", "doc_id": 2, "reason": EMPTY} in record.config["broken"]


EMPTY = "the dense model's answer is empty: its first token ends it"
WRONG = UnsupportedError("too long.")


def test_what_one_method_cannot_do_is_left_out_of_it(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prompts(tmp_path, TEXTS[:2])
    refuse(monkeypatch, "griffin", "be brief one", WRONG)
    record = run(loaded, tmp_path, tmp_path / "out", names=("dense", "griffin"))
    assert [row.questions for row in record.rows] == [2, 1]
    told = {"source": "prompts.jsonl", "doc_id": 2, "method": "griffin", "reason": "too long"}
    assert record.config["broken"] == [told]


def test_a_method_that_can_do_nothing_has_an_empty_row(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prompts(tmp_path, TEXTS[:1])
    refuse(monkeypatch, "griffin", TEXTS[0], WRONG)
    record = run(loaded, tmp_path, tmp_path / "out", names=("dense", "griffin"))
    assert (record.rows[1].questions, record.rows[1].kl) == (0, None)
    assert FidelityRecord.read(tmp_path / "out") == record


def test_out_of_memory_stops_with_all_kept(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prompts(tmp_path, TEXTS[:2])
    with monkeypatch.context() as patch:
        refuse(patch, "griffin", TEXTS[1], torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB"))
        with pytest.raises(UnsupportedError, match=r"memory ran out on question 2 of prompts\.jsonl alone"):
            run(loaded, tmp_path, tmp_path / "out", names=("dense", "griffin"))
    assert len(lines_of(tmp_path / "out")) == 3
    assert run(loaded, tmp_path, tmp_path / "out", names=("dense", "griffin")).rows[1].questions == 2


def refuse(monkeypatch: pytest.MonkeyPatch, method: str, text: str, error: Exception) -> None:
    """The method raises it at this question."""
    follow = run_module.follow

    def refusing(session: Any, inputs: Any, answer: Any, question: str) -> Any:
        if session.method.label == method and question == text:
            raise error
        return follow(session, inputs, answer, question)

    monkeypatch.setattr(run_module, "follow", refusing)


def test_groups_hold_no_more_logits_than_allowed(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prompts(tmp_path)
    record = run(loaded, tmp_path, tmp_path / "three")
    sizes: list[int] = []
    answer = run_module._Run._answer
    monkeypatch.setattr(run_module._Run, "_answer", lambda self, group: (sizes.append(len(group)), answer(self, group)))
    monkeypatch.setattr(run_module, "GROUP_BYTES", 2 * 4 * NEW * loaded.model.config.vocab_size)
    assert run(loaded, tmp_path, tmp_path / "two") == record
    assert sizes == [2, 2, 2, 1]
