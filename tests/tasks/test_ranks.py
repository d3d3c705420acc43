"""One run in several processes: the same answers and tables as in one, and how it ends where one of them does."""

import shutil
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_answers import FAKE, METHODS, TASKS, FakeAnswer, install
from forked import in_ranks
from mirrors import write_mirrors
from torch.distributed import HashStore

from coremat.errors import ConfigError, OutputError, RankError
from coremat.progress import Step
from coremat.results.record.eval import Record
from coremat.tasks.catalogue import TASKS as KNOWN
from coremat.tasks.run import ranks
from coremat.tasks.run.ranks import Ranks, own_device
from coremat.tasks.run.runner import evaluate

LIMIT, BATCH = 10, 4  # three batches for each method and task, the last one smaller
MIRRORED = [name for name, info in KNOWN.items() if info.data and not info.judge and not info.video]
ASKED = LIMIT * len(TASKS) * len(METHODS)


@dataclass
class Told:
    """What one rank did."""

    record: Record | None = None
    asked: list[list[str]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


def answer(rank: int, output: Path, fail_after: tuple[int, ...] = (), **changes: Any) -> Told:
    """The run as `rank` of the environment has it; it fails after so many batches of its own."""
    told = Told()
    torch.set_num_threads(1)  # they stand in the record
    stop = {"fail_after": fail_after[rank], "error": RuntimeError("stopped")} if fail_after else {}
    fake = install(setattr, FakeAnswer(**stop))
    told.record = evaluate(FAKE, TASKS, METHODS, LIMIT, BATCH, output=output, progress=told.steps.append, **changes)
    told.asked = fake.asked
    return told


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        install(patch.setattr, FakeAnswer())
        evaluate(FAKE, TASKS, METHODS, LIMIT, BATCH, output=folder)
    torch.set_num_threads(threads)
    return folder


def written(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("lmms-eval"))
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_same_files_as_in_one_process(alone: Path, tmp_path: Path, world: int) -> None:
    told = in_ranks(world, answer, tmp_path)
    assert written(tmp_path) == written(alone)
    assert [one.record for one in told] == [Record.read(alone)] * world
    shares = [sum(map(len, one.asked)) for one in told]
    assert sum(shares) == ASKED, "each question once, and none again for the scores"
    assert shares == {2: [24, 16], 3: [16, 16, 8], 5: [16, 16, 8, 0, 0]}[world]
    assert sum(step.advance for step in told[0].steps) == told[0].steps[0].total == ASKED


def answer_mirrors(rank: int, output: Path, root: Path) -> list[list[str]]:
    fake = install(setattr, FakeAnswer())
    evaluate(FAKE, MIRRORED, METHODS, batch_size=2, output=output, data_root=root)
    return fake.asked


def test_tasks_of_lmms_eval_are_asked_as_it_asks_them(tmp_path: Path) -> None:
    """Ranks make their requests without its evaluator: other prompts or settings would be asked a second time."""
    write_mirrors(tmp_path / "data", MIRRORED)
    told = in_ranks(2, answer_mirrors, tmp_path / "two", tmp_path / "data")
    (asked,) = in_ranks(1, answer_mirrors, tmp_path / "one", tmp_path / "data")
    assert written(tmp_path / "two") == written(tmp_path / "one")
    assert sorted(batch for one in told for batch in one) == sorted(asked)
    assert min(map(len, told)) > len(METHODS) * len(MIRRORED)


# --- stopped, and gone on with ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What three ranks leave that fail after 1, 2 and 0 batches of their own."""
    folder = tmp_path_factory.mktemp("stopped")
    ended = in_ranks(3, answer, folder, (1, 2, 0), patience=60)  # each ends by itself, on a busy machine later
    assert {str(error) for error in ended} == {"stopped"}
    assert sorted(path.name for path in folder.glob("samples*")) == [
        "samples.jsonl",
        "samples.rank1.jsonl",
        "samples.rank2.jsonl",
    ]
    return folder


@pytest.mark.parametrize("world", [1, 2, 3])
def test_other_ranks_ask_only_what_is_missing(alone: Path, stopped: Path, tmp_path: Path, world: int) -> None:
    folder = shutil.copytree(stopped, tmp_path / "out")
    with (folder / "samples.rank1.jsonl").open("ab") as file:  # what a kill in the middle of a write leaves
        file.write(b'{"method": "corematching", "task": "sha')
    if world == 1:
        with pytest.MonkeyPatch.context() as patch:
            asked = install(patch.setattr, FakeAnswer()).asked
            evaluate(FAKE, TASKS, METHODS, LIMIT, BATCH, output=folder)
    else:
        told = in_ranks(world, answer, folder)
        asked = [batch for one in told for batch in one.asked]
        assert sum(step.advance for step in told[0].steps) == ASKED, "what is found counts as well"
    assert sum(map(len, asked)) == ASKED - 3 * BATCH
    assert written(folder) == written(alone)


def test_a_finished_run_is_served_to_any_number(alone: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(alone, tmp_path / "out")
    told = in_ranks(2, answer, folder)
    assert [one.asked for one in told] == [[], []]
    assert written(folder) == written(alone)


# --- what is refused, and what is lost -------------------------------------------------------------------


def disagree(rank: int, output: Path, changes: dict[str, Any]) -> None:
    install(setattr, FakeAnswer())
    options: dict[str, Any] = {"methods": METHODS, "limit": LIMIT, "batch_size": BATCH}
    options |= {name: value for name, value in changes.items() if rank and name != "loaded"}
    evaluate(replace(FAKE, **changes.get("loaded", {}) if rank else {}), TASKS, output=output, **options)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limit": 11}, "rank 1 has limit 11 and rank 0 10"),
        ({"loaded": {"fingerprint": "weights-1"}}, "rank 1 has weights 'weights-1' and rank 0 'weights-0'"),
    ],
)
def test_ranks_that_are_about_to_do_different_things(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    ended = in_ranks(2, disagree, tmp_path, changes)
    assert [type(error) for error in ended] == [ConfigError] * 2
    assert {str(error) for error in ended} == {f"{said}; all ranks of a run need the same options and weights"}
    assert list(tmp_path.iterdir()) == []


def other_seed(rank: int, output: Path) -> Told:
    return answer(rank, output, seed=1)


def test_the_folder_of_another_run(alone: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(alone, tmp_path / "out")
    first, second = in_ranks(2, other_seed, folder)
    assert isinstance(first, OutputError)
    assert "seed: 0 there, 1 here" in str(first)
    assert isinstance(second, RankError)
    assert "the launcher, or the machine that it ran on, is gone" in str(second)
    assert "\n" not in str(second)
    assert written(folder) == written(alone)


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """Rank 0 of two, whose other one does what a test does to the store."""
    one = Ranks.__new__(Ranks)
    one.store, one.rank, one.world, one.device = HashStore(), 0, 2, "cpu"
    one.seen, one.turns, one.through = 0, 0, threading.Event()
    monkeypatch.setattr(ranks, "POLL_SECONDS", 0.01)
    return one


def test_the_first_rank_counts_for_all(first: Ranks) -> None:
    assert first.count(4) == 4
    first.store.add(ranks.ANSWERS, 3)
    assert [first.count(2), first.count(0)] == [5, 0]


def test_the_first_rank_waits_for_the_other_and_shows_how_far_it_is(first: Ranks) -> None:
    shown: list[int] = []

    def show(new: int) -> None:
        shown.append(new)
        if len(shown) < 4:
            first.store.add(ranks.ANSWERS, 1)
        else:
            first.store.set(f"{ranks.DONE}/1", "yes")

    first.finish(show)
    assert shown == [0, 1, 1, 1, 0]


def test_a_process_that_died_on_another_machine_is_not_waited_for(
    first: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be slow for any time, as long as there is its pulse."""
    monkeypatch.setattr(ranks, "SILENCE_SECONDS", 0.3)
    shown: list[int] = []

    def show(new: int) -> None:
        shown.append(new)
        if len(shown) < 60:
            first.store.add(f"{ranks.PULSE}/1", 1)

    with pytest.raises(RankError, match=r"^rank 1 has given no sign of life for 0.3 seconds; the answers made so far"):
        first.finish(show)
    assert len(shown) > 60


def test_a_rank_has_a_pulse_until_it_is_through(first: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "PULSE_SECONDS", 0.01)
    pulse = threading.Thread(target=first._beat, args=(first.store,))
    pulse.start()
    while first.store.add(f"{ranks.PULSE}/0", 0) < 3:
        time.sleep(0.01)
    first.world = 1
    first.finish(lambda new: None)
    pulse.join(timeout=1)
    assert not pulse.is_alive()


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("auto") == "auto"
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank, devices in ((0, ["cuda:0", "cuda:0", "cpu", "cuda:1"]), (1, ["cuda:1", "cuda:1", "cpu", "cuda:1"])):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert [own_device(one) for one in ("auto", "cuda", "cpu", "cuda:1")] == devices
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU of its own; accepted: up to 2"):
        own_device("auto")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="device is 'cuda:1' for 3 processes; accepted: auto or cuda"):
        own_device("cuda:1")
