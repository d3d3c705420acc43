"""The journal: whole lines only, served by key, and one run per folder."""

import errno
import json
import os
from pathlib import Path

import pytest

from coremat.errors import OutputError
from coremat.tasks.run.journal import RUN_FILE, Journal, claim_folder

RUN = {"model": "tiny", "methods": {"dense": {"beta": 0.4}}, "limit": 10}


def line(number: int) -> dict[str, object]:
    return {"key": f"key-{number}", "answer": f"ü{number}", "kept": list(range(number))}


def test_lines_are_found_again(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append([line(0), line(1)])
        journal.append([line(2)])
        assert journal.lines["key-1"] == line(1)
    with Journal(tmp_path) as journal:
        assert journal.lines == {f"key-{n}": line(n) for n in range(3)}


def test_every_batch_is_on_the_disk_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_size), sync(file)))
    with Journal(tmp_path) as journal:
        for number in range(3):
            journal.append([line(number)])
            assert synced[-1] == (tmp_path / "samples.jsonl").stat().st_size
    assert len(synced) == 3


@pytest.mark.parametrize(
    "torn", [b'{"key": "key-9", "ans', b'{"key": "key-9"}', b"{not json}\n", b"[]\n", b"\x00\xff\n"]
)
def test_a_torn_last_line_is_dropped_and_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "samples.jsonl"
    with Journal(tmp_path) as journal:
        journal.append([line(0)])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with Journal(tmp_path) as journal:
        assert list(journal.lines) == ["key-0"]
        assert path.read_bytes() == whole
        journal.append([line(1)])
    assert [json.loads(text)["key"] for text in path.read_text().splitlines()] == ["key-0", "key-1"]


def test_a_broken_line_in_the_middle_costs_itself(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with Journal(tmp_path) as journal:
        journal.append([line(0), line(1)])
    path.write_bytes(b"\x00\xff\n" + path.read_bytes().replace(b"key-0", b'key-"0'))
    with Journal(tmp_path) as journal:
        assert list(journal.lines) == ["key-1"]
        journal.append([line(2)])
    with Journal(tmp_path) as journal:
        assert list(journal.lines) == ["key-1", "key-2"]


def test_cut_anywhere_in_its_last_line_it_is_read_up_to_the_last_whole_answer(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with Journal(tmp_path) as journal:
        journal.append([line(0), line(1)])
        before = path.read_bytes()
        journal.append([line(2)])
    whole = path.read_bytes()
    for end in range(len(before), len(whole)):  # also in the middle of a letter of two bytes
        path.write_bytes(whole[:end])
        with Journal(tmp_path) as journal:
            assert list(journal.lines) == ["key-0", "key-1"]
            journal.append([line(3)])
        assert path.read_bytes().startswith(before)
        with Journal(tmp_path) as journal:
            assert list(journal.lines) == ["key-0", "key-1", "key-3"]


def test_ranks_write_files_of_their_own_and_read_all(tmp_path: Path) -> None:
    with Journal(tmp_path) as first, Journal(tmp_path, rank=1) as second, Journal(tmp_path, rank=2) as third:
        first.append([line(0)])
        second.append([line(1)])
        third.append([line(2)])
        assert list(first.lines) == ["key-0"]
        first.read_others()
        assert first.lines == {f"key-{n}": line(n) for n in range(3)}
    names = {"samples.jsonl", "samples.rank1.jsonl", "samples.rank2.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names
    with Journal(tmp_path, rank=1) as second:
        assert set(second.lines) == {"key-0", "key-1", "key-2"}


def test_a_rank_cuts_its_own_torn_line_off_and_leaves_those_of_others(tmp_path: Path) -> None:
    for rank in (0, 1):
        with Journal(tmp_path, rank) as journal:
            journal.append([line(rank)])
            whole = journal.path.read_bytes()
            journal.path.write_bytes(whole + b'{"key": "key-9"')
    with Journal(tmp_path, rank=1) as second:
        assert set(second.lines) == {"key-0", "key-1"}
        assert second.path.read_bytes() == whole
        assert (tmp_path / "samples.jsonl").read_bytes().endswith(b'"key-9"')


def test_finish_leaves_one_file_of_all_ranks(tmp_path: Path) -> None:
    for rank in (1, 10):
        with Journal(tmp_path, rank) as journal:
            journal.append([line(rank)])
    with Journal(tmp_path) as journal:
        journal.finish([line(10), line(1)])
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]
    with Journal(tmp_path) as journal:
        assert list(journal.lines) == ["key-10", "key-1"]


def test_answers_of_any_rank_hold_the_folder(tmp_path: Path) -> None:
    claim_folder(tmp_path, RUN)
    with Journal(tmp_path, rank=3) as journal:
        journal.append([line(0)])
    with pytest.raises(OutputError, match="limit: 10 there, 11 here"):
        claim_folder(tmp_path, RUN | {"limit": 11})


@pytest.mark.parametrize("room", [0, 1, 25])
def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """The disk takes a part of the line and no more; what was there before stays, and serves again."""
    write = os.pwrite
    with Journal(tmp_path) as journal:
        journal.append([line(0)])
        before = journal.path.read_bytes()
        with monkeypatch.context() as full:
            left = [room]

            def narrow(file: int, data: bytes, position: int) -> int:
                if not left[0]:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                written = write(file, data[: left[0]], position)
                left[0] -= written
                return written

            full.setattr(os, "pwrite", narrow)
            with pytest.raises(OutputError, match="No space left on device") as caught:
                journal.append([line(1)])
        assert "\n" not in str(caught.value)
        assert journal.path.read_bytes() == before
        journal.append([line(2)])
    with Journal(tmp_path) as journal:
        assert list(journal.lines) == ["key-0", "key-2"]


def test_a_failing_sync_counts_as_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with Journal(tmp_path) as journal:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OutputError, match="quota"):
            journal.append([line(0)])
        assert journal.lines == {}
        assert journal.path.read_bytes() == b""


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        claim_folder(tmp_path / "file", RUN)


def test_finish_replaces_the_lines(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append([line(0), line(1)])
        journal.finish([line(1) | {"correct": 1.0}])
    with Journal(tmp_path) as journal:
        assert journal.lines == {"key-1": line(1) | {"correct": 1.0}}


def answered(folder: Path) -> None:
    with Journal(folder) as journal:
        journal.append([line(0)])


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    claim_folder(tmp_path / "out", RUN)
    answered(tmp_path / "out")
    claim_folder(tmp_path / "out", dict(reversed(RUN.items())))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model": "big"}, "model: tiny there, big here"),
        ({"limit": None}, "limit: 10 there, None here"),
        ({"methods": {"dense": {"beta": 0.5}}}, "methods.dense.beta: 0.4 there, 0.5 here"),
        ({"methods": {}}, "methods.dense: beta there, None here"),
        ({"model": "a", "limit": 1, "methods": {}}, "and 1 more"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, other: dict, said: str) -> None:
    claim_folder(tmp_path, RUN)
    answered(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match="holds another run") as caught:
        claim_folder(tmp_path, RUN | other)
    assert said in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["record.json", "samples.jsonl"])
@pytest.mark.parametrize("run", [None, "{torn", "[1]"])
def test_answers_of_nobody_known_are_refused(tmp_path: Path, name: str, run: str | None) -> None:
    (tmp_path / name).write_text("{}\n")
    if run:
        (tmp_path / RUN_FILE).write_text(run)
    with pytest.raises(OutputError, match="give another folder"):
        claim_folder(tmp_path, RUN)


def test_a_run_stopped_before_its_first_answer_holds_no_folder(tmp_path: Path) -> None:
    claim_folder(tmp_path, RUN)
    with Journal(tmp_path):
        pass
    claim_folder(tmp_path, RUN | {"limit": 3})
    assert json.loads((tmp_path / RUN_FILE).read_text())["limit"] == 3
