"""A whole evaluation through lmms-eval: what it writes, how it goes on, and what it refuses."""

import dataclasses
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from fake_answers import FAKE, METHODS, TASKS, FakeAnswer, install
from huggingface_hub import constants
from rich.console import Console
from rich.progress import Progress as RichProgress

import coremat.tasks.run.runner
from coremat.errors import ConfigError, DataError, OutputError, UnknownNameError, UnsupportedError
from coremat.methods.registry import parse
from coremat.progress import Step
from coremat.results.record.eval import Record, read_samples
from coremat.tasks.catalogue import TASKS as KNOWN
from coremat.tasks.catalogue import TaskInfo
from coremat.tasks.lmms_eval.load import limited, load_task
from coremat.tasks.lmms_eval.model import sample_seed
from coremat.tasks.lmms_eval.quiet import LOG_FILE
from coremat.tasks.run.runner import evaluate

LIMIT = 10


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeAnswer:
    return install(monkeypatch.setattr, FakeAnswer())


def run(output: Path, **changes: Any) -> Record:
    options: dict[str, Any] = {"tasks": TASKS, "methods": METHODS, "limit": LIMIT, "batch_size": 4, "output": output}
    return evaluate(FAKE, **options | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        install(patch.setattr, FakeAnswer())
        run(folder)
    return folder


def test_the_record(whole: Path) -> None:
    record = Record.read(whole)
    told = [(row.method, row.task, row.metric, row.samples) for row in record.rows]
    assert [row[:3] for row in told] == [
        (method, task, metric)
        for method in METHODS
        for task, metric in (("easyvqa", "accuracy"), ("shapes", "accuracy"), ("shapes", "listing_f1"))
    ]
    assert {row[3] for row in told if row[2] == "accuracy"} == {LIMIT}
    assert record.model == "fake"
    assert record.config["prompt_tokens"] == {"easyvqa": 150, "shapes": 150}
    assert record.config["flops_convention"].startswith("2*MAC")
    assert record.config["own_scale"] == {}
    assert {"versions", "cpu", "threads", "device", "dtype"} <= set(record.environment)
    assert {"table.md", "table.csv", "table.tex"} <= {path.name for path in whole.iterdir()}


def test_the_samples(whole: Path) -> None:
    samples = read_samples(whole)
    assert len(samples) == len(METHODS) * len(TASKS) * LIMIT
    order = [(method, task, doc) for method in METHODS for task in TASKS for doc in range(LIMIT)]
    assert list(zip(samples.method, samples.task, samples.doc_id, strict=True)) == order
    right = [answer == target for answer, target in zip(samples.answer, samples.target, strict=True)]
    assert list(samples.correct) == right
    assert samples.correct.sum() > 0
    names = {"question", "kind", "kept", "image_tokens", "neurons_kept", "prompt_tokens", "new_tokens", "key"}
    assert names <= set(samples.columns)


def test_a_row_is_what_its_lines_are(whole: Path) -> None:
    samples = read_samples(whole)
    for row in Record.read(whole).rows:
        lines = samples[(samples.method == row.method) & (samples.task == row.task)]
        if row.metric == "accuracy":
            assert row.score == pytest.approx(100 * lines.correct.mean())
            assert row.stderr == pytest.approx(100 * lines.correct.std() / LIMIT**0.5)
        else:
            lines = lines[lines.kind == "listing"]
        assert row.samples == len(lines)
        assert row.image_tokens_kept == pytest.approx(lines.image_tokens_kept.mean())
        assert row.kv_cache_mib == pytest.approx(lines.kv_cache_mib.mean())
        assert row.neurons_kept == 140.5
        assert row.ffn_read_mib == 3.0


def test_a_second_run_asks_nothing_and_gives_the_same(whole: Path, fake: FakeAnswer, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in whole.iterdir() if path.name != LOG_FILE}
    steps: list[Step] = []
    run(whole, progress=steps.append)
    assert fake.asked == []
    assert {path.name: path.read_bytes() for path in whole.iterdir() if path.name != LOG_FILE} == before
    assert sum(step.advance for step in steps) == steps[0].total == 40


def test_progress_counts_all_samples_of_all_methods_and_tasks(fake: FakeAnswer, tmp_path: Path) -> None:
    steps: list[Step] = []
    run(tmp_path, progress=steps.append)
    assert {step.total for step in steps} == {40}
    assert sum(step.advance for step in steps) == 40
    told = list(dict.fromkeys(step.description for step in steps))
    assert told == [f"{method} on {task}" for method in METHODS for task in TASKS]


@pytest.mark.parametrize("error", [RuntimeError("a weight is missing"), KeyboardInterrupt()])
def test_a_stopped_run_keeps_its_answers_and_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    install(monkeypatch.setattr, FakeAnswer(fail_after=5, error=error))
    with pytest.raises(type(error)):
        run(tmp_path)
    done = len(read_samples(tmp_path))
    assert done > 0
    assert not (tmp_path / "record.json").exists()
    rest = install(monkeypatch.setattr, FakeAnswer())
    run(tmp_path)
    assert sum(map(len, rest.asked)) == 40 - done
    assert_same(tmp_path, whole)


def assert_same(folder: Path, whole: Path) -> None:
    for name in ("samples.jsonl", "record.json", "table.md", "table.csv", "table.tex"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_full_disk_is_said_in_one_sentence(tmp_path: Path, fake: FakeAnswer, monkeypatch: pytest.MonkeyPatch) -> None:
    write, left = os.pwrite, [6000]

    def narrow(file: int, data: bytes, position: int) -> int:
        if left[0] <= 0:
            raise OSError(28, "No space left on device")
        left[0] -= len(data)
        return write(file, data, position)

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", narrow)
        with pytest.raises(OutputError, match="No space left on device; the answers written so far stay"):
            run(tmp_path)
    done = len(read_samples(tmp_path))
    assert done > 0
    fake.asked.clear()
    run(tmp_path)
    assert sum(map(len, fake.asked)) == 40 - done


@pytest.mark.parametrize(
    "changes",
    [
        {"limit": 11},
        {"batch_size": 3},
        {"seed": 1},
        {"tasks": ["shapes"]},
        {"methods": {"dense": METHODS["dense"]}},
        {"methods": METHODS | {"corematching": parse("corematching:beta=0.3")}},
    ],
)
def test_the_folder_of_another_run_is_refused(whole: Path, fake: FakeAnswer, changes: dict[str, Any]) -> None:
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    with pytest.raises(OutputError, match="holds another run"):
        run(whole, **changes)
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before
    assert fake.asked == []


def test_other_weights_are_another_run(whole: Path, fake: FakeAnswer) -> None:
    with pytest.raises(OutputError, match="weights: weights-0 there, weights-1 here"):
        evaluate(dataclasses.replace(FAKE, fingerprint="weights-1"), TASKS, METHODS, LIMIT, 4, 0, whole)


def test_answers_of_an_older_schema_are_another_run(fake: FakeAnswer, tmp_path: Path) -> None:
    """Their times have other names, and would be missing from the medians."""
    run(tmp_path)
    claim = tmp_path / "run.json"
    claim.write_text(
        json.dumps({name: value for name, value in json.loads(claim.read_text()).items() if name != "schema"})
    )
    with pytest.raises(OutputError, match="schema: None there, 3 here"):
        run(tmp_path)


def test_a_share_is_taken_of_each_task(fake: FakeAnswer, tmp_path: Path) -> None:
    record = run(tmp_path, limit=0.002, methods={"dense": METHODS["dense"]})
    samples = {row.task: row.samples for row in record.rows if row.metric == "accuracy"}
    assert samples == {"easyvqa": 20, "shapes": 5}


def test_limits() -> None:
    assert [limited(100, one) for one in (None, 7, 1, 200, 0.5, 0.001)] == [100, 7, 1, 100, 50, 1]


@pytest.mark.parametrize("limit", [0, -1, 1.5, -0.5])
def test_a_bad_limit(tmp_path: Path, limit: float) -> None:
    with pytest.raises(ConfigError, match="limit is"):
        run(tmp_path, limit=limit)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_task_is_said_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'shapes'"):
        run(tmp_path, tasks=["easyvqa", "shapess"])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_a_dataset_that_cannot_be_had_is_said_at_once(tmp_path: Path, fake: FakeAnswer) -> None:
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        run(tmp_path, tasks=["shapes", "pope"])
    assert time.monotonic() - started < 5, "lmms-eval tries five times, for eight seconds"
    said = str(caught.value)
    assert "task pope needs the dataset lmms-lab-encoder/POPE" in said
    assert "\n" not in said
    assert fake.asked == [], "no answer before all tasks are there"
    run(tmp_path, tasks=["shapes"])


@pytest.fixture
def other_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A task made from shapes by replacing words in its YAML and adding lines to its functions; its name."""

    def make(old: str, new: str, code: str = "") -> str:
        folder = KNOWN["shapes"].folder
        text = (folder / "shapes.yaml").read_text().replace("data/test.parquet", str(folder / "data" / "test.parquet"))
        (tmp_path / "other.yaml").write_text(text.replace("task: shapes", "task: other").replace(old, new))
        (tmp_path / "utils.py").write_text((folder / "utils.py").read_text() + code)
        infos = (TaskInfo("other", "", tmp_path, ("other",)),)
        monkeypatch.setattr(coremat.tasks.run.runner, "resolve_tasks", lambda names: infos)
        return "other"

    return make


def test_a_task_of_several_rounds(tmp_path: Path, other_task: Callable[..., str]) -> None:
    with pytest.raises(UnsupportedError, match="of type generate_until_multi_round"):
        run(tmp_path / "out", tasks=[other_task("generate_until", "generate_until_multi_round")])


def test_a_task_whose_module_is_missing(tmp_path: Path, other_task: Callable[..., str]) -> None:
    with pytest.raises(UnsupportedError, match="task other needs the Python module no_such_module"):
        run(tmp_path / "out", tasks=[other_task("", "", "import no_such_module\n")])


ASKS_A_SERVER = """
import urllib.request

def process_results(doc, results):
    for _ in range(5):
        try:
            urllib.request.urlopen("http://judge.invalid/v1")
        except Exception:
            continue
    return {"accuracy": 0.0}
"""


def test_a_task_that_asks_a_server_stops_the_run_and_keeps_its_answers(
    fake: FakeAnswer, tmp_path: Path, other_task: Callable[..., str]
) -> None:
    with pytest.raises(UnsupportedError, match=r"^task other asks judge\.invalid for its scores, .* answers are kept$"):
        run(tmp_path / "out", tasks=[other_task("", "", ASKS_A_SERVER)])
    assert len(read_samples(tmp_path / "out")) == LIMIT
    assert not (tmp_path / "out" / "record.json").exists()
    asked = len(fake.asked)
    run(tmp_path / "out", tasks=[other_task("", "")])
    assert len(fake.asked) == 2 * asked, "the answers of the first of two methods serve again"


def test_two_filters_give_one_line_for_a_question(
    fake: FakeAnswer, tmp_path: Path, other_task: Callable[..., str]
) -> None:
    filters = (
        "filter_list:\n  - name: first\n    filter: [{function: take_first}]\n"
        "  - name: second\n    filter: [{function: take_first}]\nmetadata:"
    )
    record = run(tmp_path / "out", tasks=[other_task("metadata:", filters)])
    assert [(row.metric, row.samples) for row in record.rows] == [("accuracy", LIMIT)] * len(METHODS)
    assert len(read_samples(tmp_path / "out")) == len(METHODS) * LIMIT


def test_a_task_without_an_entry_keeps_lmms_evals_scale(
    fake: FakeAnswer, tmp_path: Path, other_task: Callable[..., str]
) -> None:
    record = run(tmp_path / "out", tasks=[other_task("", "")])
    assert record.config["own_scale"] == {"other": ["accuracy"]}
    correct = read_samples(tmp_path / "out").groupby("method")["correct"].mean()
    assert {row.method: row.score for row in record.rows} == pytest.approx(dict(correct))


def test_a_launcher_that_says_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE is '2' and RANK is not set"):
        run(tmp_path)


def test_one_seed_for_all(fake: FakeAnswer, tmp_path: Path) -> None:
    """What a sample draws with is the run's and its own; a method's own seed is left as it is."""
    record = run(tmp_path, seed=5, limit=2, methods={name: parse(name) for name in ("dense", "random-tokens:seed=3")})
    drawn = {sample_seed(5, task, doc) for task in TASKS for doc in range(2)}
    assert sorted(seed for batch in fake.seeds for seed in batch) == sorted([*drawn, *drawn])
    assert record.config["methods"]["random-tokens:seed=3"]["options"]["seed"] == 3


def test_the_terminal_stays_clean(fake: FakeAnswer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, limit=2)
    assert capfd.readouterr() == ("", "")
    log = (tmp_path / LOG_FILE).read_text()
    assert "Building contexts for easyvqa" in log


def test_a_log_that_cannot_be_written_stops_nothing(
    fake: FakeAnswer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / LOG_FILE).symlink_to("/dev/full")
    run(tmp_path, limit=2)


def test_a_progress_bar_that_holds_its_stream_is_drawn(fake: FakeAnswer, tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    with RichProgress(console=console, auto_refresh=False) as bar:
        line = bar.add_task("")

        def show(step: Step) -> None:
            bar.update(line, total=step.total, description=step.description, advance=step.advance, refresh=True)

        run(tmp_path, limit=2, progress=show)
    assert all(f"{method} on {task}" in stream.getvalue() for method in METHODS for task in TASKS)


def test_only_the_folders_of_the_tasks_are_indexed(
    fake: FakeAnswer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of lmms-eval's take 7 s, at every call that is not given a manager."""
    import lmms_eval.evaluator

    monkeypatch.setattr(lmms_eval.evaluator, "TaskManager", None)
    run(tmp_path, limit=2)


def test_images_are_decoded_once_per_method(fake: FakeAnswer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *a, **k: (decoded.append(1), decode(*a, **k))[1])
    run(tmp_path, tasks=["shapes"])
    assert len(decoded) <= len(METHODS) * LIMIT + 2, "and a task looks at its first question when it is loaded"


def test_lmms_evals_response_cache_hits_on_a_second_run(fake: FakeAnswer, tmp_path: Path) -> None:
    """Its key holds the settings of a request and the repr of the model: both must be what they were."""
    from lmms_eval.evaluator import simple_evaluate

    from coremat.tasks.lmms_eval.model import CoreMatchingLmms

    task = load_task(KNOWN["shapes"], 4)[0]
    for beta, batches in ((0.4, 1), (0.4, 1), (0.3, 2)):
        model = CoreMatchingLmms(FAKE, batch_size=4, beta=beta)
        options = {"tasks": [task.task], "task_manager": task.manager, "limit": 4, "bootstrap_iters": 0}
        simple_evaluate(model, use_cache=str(tmp_path), distributed_executor_backend="torchrun", **options)
        assert len(fake.asked) == batches


def test_lines_are_plain_json(whole: Path) -> None:
    for text in (whole / "samples.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
