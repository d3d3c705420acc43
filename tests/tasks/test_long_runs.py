"""What happens to long runs: they are killed, memory runs out, images cannot be read; the scores stay what they are.

`kill_and_resume` does to any run what a test does here to one of the fake model: `kill_bundled` to the bundled one.
"""

import io
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import pyarrow
import pytest
import torch
from fake_answers import FAKE, METHODS, NO_MEMORY, TASKS, FakeAnswer, install
from forked import context
from PIL import Image
from pyarrow import parquet
from tiny import BATCHES, Prompt, answer, make_inputs

import coremat
import coremat.tasks.run.runner
from coremat.errors import UnsupportedError
from coremat.models.load import load
from coremat.results.record.eval import Record, read_samples
from coremat.runtime.stats import SequenceStats
from coremat.tasks.catalogue import TASKS as KNOWN
from coremat.tasks.catalogue import TaskInfo
from coremat.tasks.run.runner import evaluate

LIMIT, BATCH = 10, 4
FILES = ("samples.jsonl", "record.json", "table.md", "table.csv", "table.tex")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeAnswer:
    return install(monkeypatch.setattr, FakeAnswer())


def run(output: Path, **changes: Any) -> Record:
    options: dict[str, Any] = {"tasks": TASKS, "methods": METHODS, "limit": LIMIT, "batch_size": BATCH}
    return evaluate(FAKE, output=output, **options | changes)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


# --- killed ----------------------------------------------------------------------------------------------


def fake_run(output: Path) -> None:
    """120 answers, slow enough to be killed among them."""
    install(setattr, FakeAnswer(pause=0.02))
    evaluate(FAKE, TASKS, METHODS, 30, BATCH, output=output)


def bundled_run(output: Path) -> None:
    """The same of the model that comes along, 800 answers."""
    evaluate(load("shapes-llava"), TASKS, METHODS, 200, BATCH, output=output)


def kill_and_resume(run: Callable[[Path], None], folder: Path, times: int, seed: int) -> list[int]:
    """Kill a run so many times, at moments drawn by `seed`, and let it end; how many answers there were each time."""
    draw = random.Random(seed)
    there: list[int] = []
    while len(there) < times:
        process = context().Process(target=run, args=(folder,))
        process.start()
        wait_for_more(process, folder, draw.randint(0, 20))
        time.sleep(draw.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run was over before it could be killed"
        there.append(written(folder))
    run(folder)
    return there


def kill_bundled(folder: Path, times: int = 20, seed: int = 0) -> list[int]:
    """To be called by hand: it takes minutes. Its times are another run's, so they are left out."""
    bundled_run(folder / "whole")
    there = kill_and_resume(bundled_run, folder / "killed", times, seed)
    assert without_times(folder / "killed") == without_times(folder / "whole")
    return there


def without_times(folder: Path) -> list[dict[str, Any]]:
    """Rows and lines as two runs of a real model have them in common, down to the last digit."""
    found = [*map(vars, Record.read(folder).rows), *lines_of(folder)]
    return [{name: value for name, value in one.items() if "_ms" not in name} for one in found]


def wait_for_more(process: BaseProcess, folder: Path, more: int) -> None:
    """Until so many lines have been added; 0: at any time, also before there is a journal."""
    before = written(folder)
    while process.is_alive() and written(folder) < before + more:
        time.sleep(0.005)


def written(folder: Path) -> int:
    journal = folder / "samples.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def assert_same(folder: Path, whole: Path) -> None:
    for name in FILES:
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_killed_at_any_moment_and_gone_on_with_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch.setattr, FakeAnswer())
    fake_run(tmp_path / "whole")
    there = kill_and_resume(fake_run, tmp_path / "killed", times=4, seed=0)
    assert 0 < there[-1] < 30 * len(TASKS) * len(METHODS)
    assert there == sorted(there), "no answer is lost"
    assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(
    "last", ["tasks.run.journal.Journal.finish", "tasks.run.runner.Record.write", "tasks.run.runner.write_tables"]
)
def test_stopped_while_it_writes_its_results(
    tmp_path: Path, fake: FakeAnswer, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(f"coremat.{last}", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out")
    fake.asked.clear()
    run(tmp_path / "out")
    assert fake.asked == []
    assert_same(tmp_path / "out", tmp_path / "whole")


def stop(*words: Any) -> NoReturn:
    raise KeyboardInterrupt


def test_stopped_before_the_files_of_other_ranks_are_removed(tmp_path: Path, fake: FakeAnswer) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "out")
    unscored = [line | {"scores": None, "correct": None} for line in lines_of(tmp_path / "out")[::2]]
    (tmp_path / "out" / "samples.rank1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in unscored))
    fake.asked.clear()
    run(tmp_path / "out")
    assert fake.asked == []
    assert_same(tmp_path / "out", tmp_path / "whole")
    assert not (tmp_path / "out" / "samples.rank1.jsonl").exists()


# --- memory ----------------------------------------------------------------------------------------------


def test_batches_that_do_not_fit_change_no_answer_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeAnswer
) -> None:
    whole = run(tmp_path / "whole")
    install(monkeypatch.setattr, FakeAnswer(room=2))
    said: list[str] = []
    narrow = run(tmp_path / "narrow", log=said.append)
    assert said == ["memory ran out on 4 questions at once; going on with 2"], "once for all methods and tasks"
    assert narrow.rows == whole.rows
    samples, before = read_samples(tmp_path / "narrow"), read_samples(tmp_path / "whole")
    assert samples.drop(columns="smaller_batch").equals(before.drop(columns="smaller_batch"))
    assert not before.smaller_batch.any()
    assert samples.smaller_batch.sum() == narrow.config["in_smaller_batches"] == 4 * len(TASKS) * len(METHODS) * 2
    assert whole.config["in_smaller_batches"] == 0


def test_one_question_that_does_not_fit_stops_the_run_and_keeps_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch.setattr, FakeAnswer(fail_after=3, error=NO_MEMORY))
    with pytest.raises(UnsupportedError, match=r"^memory ran out on question \d+ of shapes alone: CUDA out of memory$"):
        run(tmp_path, batch_size=4)
    assert len(read_samples(tmp_path)) == LIMIT
    rest = install(monkeypatch.setattr, FakeAnswer())
    run(tmp_path)
    assert sum(map(len, rest.asked)) == LIMIT * (len(TASKS) * len(METHODS) - 1)


SPECS = [
    "dense",
    "corematching",
    "projection-tokens:tokens=4+core-neurons:prefill_from=2",
]


@pytest.mark.parametrize("method", SPECS)
@pytest.mark.parametrize("call", [1, 3], ids=["in-prefill", "while-decoding"])
@pytest.mark.parametrize("layer", [1, 5])
def test_a_session_that_ran_out_of_memory_answers_as_one_that_did_not(
    exact_model: Any, method: str, call: int, layer: int
) -> None:
    prompts = [*BATCHES["left-padded"], *BATCHES["same-length"]]
    with coremat.apply(exact_model, method) as session:
        expected = [(answer(exact_model, inputs(part)).tokens, session.stats) for part in halves(prompts)]
    with coremat.apply(exact_model, method) as session:
        with failing(exact_model.get_decoder().layers[layer], call), pytest.raises(torch.OutOfMemoryError):
            answer(exact_model, inputs(prompts))
        for part, (tokens, stats) in zip(halves(prompts), expected, strict=True):
            assert torch.equal(answer(exact_model, inputs(part)).tokens, tokens)
            assert [chosen_in(one) for one in session.stats] == [chosen_in(one) for one in stats]


def chosen_in(stats: SequenceStats) -> tuple[Any, ...]:
    return stats.prompt_tokens, stats.kept, stats.neurons_kept, stats.kv_bytes


def halves(prompts: list[Prompt]) -> list[list[Prompt]]:
    return [prompts[:2], prompts[2:]]


def inputs(prompts: list[Prompt]) -> dict[str, torch.Tensor]:
    return make_inputs(*prompts, dtype=torch.float64)


@contextmanager
def failing(layer: torch.nn.Module, call: int) -> Iterator[None]:
    """The layer runs out of memory when it is called so many times."""
    calls = count(1)

    def fail(*words: Any) -> None:
        if next(calls) == call:
            raise NO_MEMORY

    handle = layer.mlp.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


# --- broken images ---------------------------------------------------------------------------------------


def cut_png() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, "PNG")
    return stream.getvalue()[: len(stream.getvalue()) // 2]


CUT, EMPTY, TEXT = cut_png(), b"", b"not found, says the server"


@pytest.fixture
def shapes_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A task made of the first questions of shapes, with these bytes in the place of some images; its name."""

    def make(images: dict[int, bytes]) -> str:
        own = KNOWN["shapes"].folder
        table = parquet.read_table(own / "data" / "test.parquet").slice(0, LIMIT)
        rows = table.column("image").to_pylist()
        for number, data in images.items():
            rows[number]["bytes"] = data
        place = table.column_names.index("image")
        kind = table.schema.field(place)
        path = tmp_path / "changed.parquet"
        parquet.write_table(table.set_column(place, kind, pyarrow.array(rows, kind.type)), path)
        text = (own / "shapes.yaml").read_text().replace("task: shapes", "task: changed")
        (tmp_path / "changed.yaml").write_text(text.replace("data/test.parquet", str(path)))
        (tmp_path / "utils.py").write_bytes((own / "utils.py").read_bytes())
        monkeypatch.setattr(
            coremat.tasks.run.runner, "resolve_tasks", lambda names: (TaskInfo("changed", "", tmp_path, ("changed",)),)
        )
        return "changed"

    return make


def test_broken_images_are_named_and_wrong_and_nothing_else_changes(
    tmp_path: Path, fake: FakeAnswer, shapes_with: Callable[..., str]
) -> None:
    run(tmp_path / "whole", tasks=[shapes_with({})])
    fake.asked.clear()
    said: list[str] = []
    record = run(tmp_path / "out", tasks=[shapes_with({0: EMPTY, 3: CUT, 5: TEXT})], log=said.append)
    reasons = {0: "cannot identify image file", 3: "image file is truncated", 5: "cannot identify image file"}
    assert sorted(said) == [f"question {n} of changed counts as wrong: {why}" for n, why in reasons.items()]
    assert record.config["broken"] == [{"task": "changed", "doc_id": n, "reason": why} for n, why in reasons.items()]
    assert sum(map(len, fake.asked)) == (LIMIT - len(reasons)) * len(METHODS)
    whole, lines = lines_of(tmp_path / "whole"), lines_of(tmp_path / "out")
    for line, before in zip(lines, whole, strict=True):
        if line["doc_id"] in reasons:
            assert (line["answer"], line["correct"], line["broken"]) == ("", 0, reasons[line["doc_id"]])
        else:
            assert line == before
    for row in record.rows:
        scores = [line["scores"].get(row.metric) for line in lines if line["method"] == row.method]
        scores = [score for score in scores if score is not None]
        assert (row.samples, row.score) == (len(scores), pytest.approx(sum(scores) / len(scores)))
    fake.asked.clear()
    run(tmp_path / "again", tasks=["changed"])
    assert_same(tmp_path / "again", tmp_path / "out")
    fake.asked.clear()
    run(tmp_path / "again", tasks=["changed"])
    assert fake.asked == [], "what is broken is found again as well"


def test_a_task_of_broken_images_alone(tmp_path: Path, fake: FakeAnswer, shapes_with: Callable[..., str]) -> None:
    record = run(tmp_path / "out", tasks=[shapes_with(dict.fromkeys(range(LIMIT), CUT))])
    assert fake.asked == []
    assert len(record.config["broken"]) == LIMIT
    assert {(row.score, row.image_tokens, row.first_token_ms) for row in record.rows} == {(0, None, None)}
    assert (tmp_path / "out" / "table.md").exists()
