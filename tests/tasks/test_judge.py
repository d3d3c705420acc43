"""The judge before a real server on loopback: right, slow, wrong and down in turn; and what is left on the disk."""

import errno
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from judge_server import RETRY_DELAY, Reply, fails, judge_server, says, sends

from coremat.errors import ConfigError, JudgeError, OutputError
from coremat.tasks.judge.client import Judge, base_url

KEY = "sk-a-key-that-nobody-may-see"
QUESTION = [{"role": "user", "content": "how good is ü?"}]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RETRY_DELAY, 0.002)


def is_number(verdict: str) -> bool:
    return verdict.replace(".", "").isdecimal()


def a_judge(url: str, folder: Path, tries: int = 5, timeout: float = 5.0) -> Judge:
    return Judge(url, "grader", folder / "judge.jsonl", timeout=timeout, tries=tries)


def asked(judge: Judge, question: str = "q") -> str:
    return judge.ask([{"role": "user", "content": question}], 32, is_number)


def lines(folder: Path) -> list[dict[str, str]]:
    path = folder / "judge.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_question_that_is_sent(tmp_path: Path) -> None:
    with judge_server([says(" 0.5\n")]) as server:
        assert a_judge(server.url, tmp_path).ask(QUESTION, 32, is_number) == "0.5"
    assert server.asked == [{"model": "grader", "messages": QUESTION, "max_tokens": 32, "temperature": 0.0}]
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize("ending", ["", "/", "/chat/completions", "/chat/completions/"])
def test_the_url_may_name_the_endpoint(tmp_path: Path, ending: str) -> None:
    with judge_server([says("1")]) as server:
        judge = a_judge(server.url + ending, tmp_path)
        assert asked(judge) == "1"
        assert judge.url == server.url


@pytest.mark.parametrize(
    "url", ["", "localhost:8000/v1", "ftp://h/v1", "http://", "http://[/", "http://h:x", "http://h/v1?a=1"]
)
def test_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match=r"the judge's url is '.*'; accepted: http"):
        base_url(url)


def test_a_url_with_a_password_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="holds a user") as refusal:
        base_url("http://me:secret@h/v1")
    assert "secret" not in str(refusal.value)


# --- servers that fail -----------------------------------------------------------------------------------


FAILURES = {
    "slow": says("0.1", after=0.6),
    "500": fails(500),
    "429": fails(429),
    "no json": sends(b"{never ends"),
    "html": sends(b"<html>welcome</html>"),
    "no choices": sends(b'{"choices": []}'),
    "other json": sends(b'"0.3"'),
    "empty": says("  "),
    "null": says(None),
    "unreadable": says("It depends."),
}


def patience(name: str) -> float:
    return 0.25 if name == "slow" else 5.0


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_asked_again(tmp_path: Path, name: str) -> None:
    with judge_server([FAILURES[name], FAILURES[name], says("0.7")]) as server:
        assert asked(a_judge(server.url, tmp_path, timeout=patience(name))) == "0.7"
    assert len(server.asked) == 3
    assert [line["verdict"] for line in lines(tmp_path)] == ["0.7"]


TOLD = {
    "slow": "nothing within 0.25 s",
    "500": "HTTP 500 '.*it broke.*'",
    "429": "HTTP 429 '.*it broke.*'",
    "no json": "no chat completion but '{never ends'",
    "html": "no chat completion but '<html>welcome</html>'",
    "no choices": "no chat completion but .*choices",
    "other json": "no chat completion but",
    "empty": "an empty answer",
    "null": "an empty answer",
    "unreadable": "'It depends.'",
}


@pytest.mark.parametrize("name", TOLD)
def test_a_failure_that_stays_is_told(tmp_path: Path, name: str) -> None:
    with judge_server([FAILURES[name]]) as server, pytest.raises(JudgeError) as refusal:
        asked(a_judge(server.url, tmp_path, tries=2, timeout=patience(name)))
    assert len(server.asked) == 2
    assert refusal.match(
        f"^the judge grader at {server.url} gave no verdict in 2 tries; the last time there came {TOLD[name]}"
    )
    assert lines(tmp_path) == []


def test_what_cannot_be_read_is_asked_for_warmer(tmp_path: Path) -> None:
    script = [says("well"), fails(500), says("hm"), says("so so"), says("1")]
    with judge_server(script) as server:
        asked(a_judge(server.url, tmp_path))
    assert [question["temperature"] for question in server.asked] == [0.0, 0.5, 0.5, 1.0, 1.0]


def test_waits_double_and_heed_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RETRY_DELAY, 0.5)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    script = [fails(500), fails(429, Retry_After="7"), fails(429, Retry_After="soon"), says("1")]
    with judge_server(script) as server:
        asked(Judge(server.url, "grader", tmp_path / "judge.jsonl"))
    first, heeded, third = [wait for wait in waits if wait]  # the server's own waits are 0
    assert 0.3 < first <= 0.5
    assert heeded == 7.0
    assert 1.5 <= third <= 2.0


def test_a_server_that_is_down(tmp_path: Path) -> None:
    with judge_server([]) as server:
        pass
    with pytest.raises(JudgeError, match=rf"grader at {server.url} gave .* no connection \(.*refused"):
        a_judge(server.url, tmp_path).probe()


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_question_that_is_not_taken_is_not_repeated(tmp_path: Path, status: int) -> None:
    script = [fails(status, f"no such model, {KEY}")]
    with judge_server(script) as server, pytest.raises(JudgeError, match=rf"HTTP {status} .*no such model, \*\*\*"):
        asked(a_judge(server.url, tmp_path))
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with judge_server([fails(status, f"incorrect key {KEY}")]) as server:
        with pytest.raises(JudgeError, match=rf"refused the key in OPENAI_API_KEY \(HTTP {status}\)$"):
            a_judge(server.url, tmp_path).probe()
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(JudgeError, match=r"wants a key, and OPENAI_API_KEY is not set"):
            a_judge(server.url, tmp_path).probe()
    assert server.keys == [f"Bearer {KEY}", "Bearer none"]


@pytest.mark.parametrize("bad", ["sk\nsk", "schlüssel"])
def test_a_key_that_no_header_carries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", bad)
    with (
        judge_server([says("1")]) as server,
        pytest.raises(ConfigError, match="OPENAI_API_KEY has characters") as refusal,
    ):
        asked(a_judge(server.url, tmp_path))
    assert bad not in str(refusal.value)


def test_the_key_is_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where the server quotes it."""
    caplog.set_level("DEBUG")
    script = [says(f"1 {KEY}"), fails(500, KEY), says(KEY)]
    with judge_server(script) as server:
        judge = a_judge(server.url, tmp_path, tries=3)
        assert judge.ask(QUESTION, 32, lambda verdict: verdict.startswith("1")) == "1 ***"
        with pytest.raises(JudgeError) as refusal:
            asked(judge)
    shown = capfd.readouterr()
    said = [
        repr(judge),
        str(judge),
        str(refusal.value),
        repr(refusal.value.__cause__),
        caplog.text,
        shown.out,
        shown.err,
    ]
    files = [path.read_text() for path in tmp_path.rglob("*")]
    assert files
    assert not any(KEY in text for text in said + files)


def test_a_short_key_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "0")
    with judge_server([says("0.5")]) as server:
        assert asked(a_judge(server.url, tmp_path)) == "0.5"


def test_a_judge_that_failed_is_not_asked_on(tmp_path: Path) -> None:
    """Else each of the threads that score would try to its own end before the run stops."""
    with judge_server([says("1"), fails(500)]) as server:
        judge = a_judge(server.url, tmp_path, tries=3)
        asked(judge, "known")
        told = []
        for question in ("one", "another"):
            with pytest.raises(JudgeError) as refusal:
                asked(judge, question)
            told.append(str(refusal.value))
        assert told[0] == told[1]
        assert len(server.asked) == 4
        assert asked(judge, "known") == "1"


# --- verdicts on the disk --------------------------------------------------------------------------------


def test_the_second_run_asks_nothing(tmp_path: Path) -> None:
    with judge_server(lambda question: says(question)) as server:
        first = [asked(a_judge(server.url, tmp_path), number) for number in "123"]
        second = a_judge(server.url, tmp_path)
        assert [asked(second, number) for number in "123"] == first == list("123")
        assert len(server.asked) == 3


def test_verdicts_outlast_a_judge_that_fails(tmp_path: Path) -> None:
    with judge_server(lambda question: says(question)) as server:
        judge = a_judge(server.url, tmp_path, tries=2)
        asked(judge, "1")
        with pytest.raises(JudgeError):
            asked(judge, "no number")
    assert asked(a_judge("http://127.0.0.1:9/v1", tmp_path), "1") == "1"


def test_a_verdict_belongs_to_model_messages_and_length(tmp_path: Path) -> None:
    with judge_server([says("1"), says("2"), says("3"), says("4")]) as server:
        judge = a_judge(server.url, tmp_path)
        other = Judge(server.url, "other", tmp_path / "judge.jsonl")
        got = [judge.ask(QUESTION, 32, is_number), judge.ask(QUESTION, 33, is_number), asked(judge)]
        assert [*got, other.ask(QUESTION, 32, is_number)] == ["1", "2", "3", "4"]


def test_what_another_reader_cannot_read_is_asked_again(tmp_path: Path) -> None:
    with judge_server([says("yes"), says("1")]) as server:
        judge = a_judge(server.url, tmp_path)
        assert judge.ask(QUESTION, 32, lambda verdict: verdict == "yes") == "yes"
        assert [judge.ask(QUESTION, 32, is_number) for _ in range(2)] == ["1", "1"]
        assert a_judge(server.url, tmp_path).ask(QUESTION, 32, is_number) == "1"


def test_threads_ask_one_question_once(tmp_path: Path) -> None:
    """Different questions do not wait for each other: all four are with the server at the same time."""
    together = threading.Barrier(4, timeout=2)

    def reply(question: str) -> Reply:
        together.wait()
        return says(question)

    with judge_server(reply) as server, ThreadPoolExecutor(16) as pool:
        judge = Judge(server.url, "grader", tmp_path / "judge.jsonl")
        verdicts = pool.map(lambda number: asked(judge, str(number % 4)), range(16))
        assert list(verdicts) == [str(number % 4) for number in range(16)]
    assert len(server.asked) == 4
    assert len(lines(tmp_path)) == 4


@pytest.mark.parametrize("torn", [b'{"key": "k", "ver', b"\x00\xff", b'{"key": "k", "verdict": "3"}'])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "judge.jsonl"
    with judge_server([says("1"), says("2")]) as server:
        asked(a_judge(server.url, tmp_path))
        path.write_bytes(path.read_bytes() + torn)
        judge = a_judge(server.url, tmp_path)
        assert [asked(judge), asked(judge, "other")] == ["1", "2"]
    assert [line["verdict"] for line in lines(tmp_path)] == ["1", "2"]


def test_a_broken_line_costs_one_question(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    with judge_server(lambda question: says(question)) as server:
        for number in "12":
            asked(a_judge(server.url, tmp_path), number)
        first, second = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"[]\n" + b"{}\n" + first[:9] + b"\n" + second)
        judge = a_judge(server.url, tmp_path)
        assert [asked(judge, number) for number in "12"] == ["1", "2"]
        assert [question["messages"][0]["content"] for question in server.asked] == ["1", "2", "1"]


def test_two_judges_share_a_file(tmp_path: Path) -> None:
    """As several processes of one run do."""
    with judge_server(lambda question: says(question)) as server:
        judges = [a_judge(server.url, tmp_path) for _ in range(2)]
        for number in range(6):
            asked(judges[number % 2], str(number))
    assert [line["verdict"] for line in lines(tmp_path)] == list("012345")


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes a part of the line and no more: none of it stays."""
    write = os.pwrite
    room = [10]

    def write_some(file: int, data: bytes, position: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(file, data[: room[0]], position)
        room[0] -= done
        return done

    with judge_server(lambda question: says(question)) as server:
        judge = a_judge(server.url, tmp_path)
        asked(judge, "1")
        with monkeypatch.context() as full:
            full.setattr(os, "pwrite", write_some)
            with pytest.raises(OutputError, match=r"judge\.jsonl: No space left on device; the verdicts"):
                asked(judge, "2")
        assert [line["verdict"] for line in lines(tmp_path)] == ["1"]
        assert asked(judge, "2") == "2"


def test_verdicts_are_synced_before_they_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_size), sync(file)))
    with judge_server([says("1")]) as server:
        asked(a_judge(server.url, tmp_path))
    assert synced == [(tmp_path / "judge.jsonl").stat().st_size]
