"""The judge of open answers: a chat server that speaks OpenAI's protocol, and the file that keeps its verdicts.

A grade costs money and minutes, and depends on a server that may be slow, wrong or down. So a verdict is synced to the
disk before it is used and never asked for again, a failed call is repeated after growing waits (by OpenAI's client),
and one that fails to the end stops the run with a JudgeError: an answer that nobody graded has no score.

The key is taken from OPENAI_API_KEY and goes nowhere but to the server.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from coremat.errors import ConfigError, JudgeError
from coremat.tasks.run.lines import append, telling, whole_lines

if TYPE_CHECKING:
    import openai

KEY_VARIABLE = "OPENAI_API_KEY"
NO_KEY = "none"  # a local server wants no key, but its client does
PASSING = (408, 409, 429)  # HTTP statuses after which OpenAI's client asks again, as after all from 500 on
HOTTEST = 1.0
SECRET = 8  # characters from which on a key is one: local servers are given an "x"
SHOWN = 80  # characters of what came back in a message
ENDPOINT = "/chat/completions"
PROBE = [{"role": "user", "content": "Are you there? Answer yes."}]
PROBE_TOKENS = 16

Messages = list[dict[str, Any]]


class Judge:
    """A chat server that grades answers. Several threads may ask at once; a question that two share is asked once."""

    def __init__(self, url: str, model: str, cache: Path, timeout: float = 60.0, tries: int = 6) -> None:
        """cache: the file of verdicts. timeout: seconds. tries: to get a reply at all, and to get a readable one."""
        self.url = base_url(url)
        self.model = model
        self._path = cache
        self._timeout = timeout
        self._tries = tries
        self._secret = _secret()
        self._failed = ""  # why the judge was given up
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Lock] = {}

    def __repr__(self) -> str:
        return f"the judge {self.model} at {self.url}"

    def probe(self) -> None:
        """Ask one tiny question, before a run that will ask many; JudgeError if there is no answer."""
        self._asked(PROBE, PROBE_TOKENS, bool, min(self._tries, 2))

    def ask(self, messages: Messages, max_tokens: int, readable: Callable[[str], bool]) -> str:
        """The verdict, from the file or the server; what is not `readable` is asked for again.

        After the first JudgeError only verdicts from the file are given: other threads would try on for minutes.
        """
        key = _key(self.model, messages, max_tokens)
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
            verdicts = self._verdicts
        with turn:
            known = verdicts.found.get(key)
            if known is None or not readable(known):
                known = self._asked_or_given_up(messages, max_tokens, readable)
                verdicts.add(key, self.model, known)
            return known

    def _asked_or_given_up(self, messages: Messages, max_tokens: int, readable: Callable[[str], bool]) -> str:
        try:
            return self._asked(messages, max_tokens, readable, self._tries)
        except JudgeError as error:
            self._failed = str(error)
            raise

    @cached_property
    def _verdicts(self) -> "VerdictFile":
        return VerdictFile(self._path)

    def _asked(self, messages: Messages, max_tokens: int, readable: Callable[[str], bool], tries: int) -> str:
        came = ""
        for number in range(tries):
            if self._failed:
                raise JudgeError(self._failed)
            temperature = min(HOTTEST, number / 2)  # the same question as cold would get the same words
            reply = self._reply(messages, max_tokens, temperature, tries)
            try:
                verdict = _content(reply)
            except ValueError as error:
                came = str(error)
                continue
            if readable(verdict):
                return verdict
            came = _short(verdict)
        raise self._no_verdict(tries, came)

    def _reply(self, messages: Any, max_tokens: int, temperature: float, tries: int) -> str:
        """The body of the server's reply; JudgeError if there is none in so many tries, or never will be."""
        import openai

        client = self._client.with_options(max_retries=tries - 1)
        try:
            response = client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, max_tokens=max_tokens, temperature=temperature
            )
        except openai.APIStatusError as error:
            raise self._status_error(error.response, tries) from None  # a request carries the key
        except openai.APITimeoutError:
            raise self._no_verdict(tries, f"nothing within {self._timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise self._no_verdict(tries, self._hidden(f"no connection ({error.__cause__ or error})")) from None
        return self._hidden(response.http_response.text)

    def _status_error(self, response: Any, tries: int) -> JudgeError:
        status = response.status_code
        if status in (401, 403):
            told = (
                f"refused the key in {KEY_VARIABLE}" if self._secret else f"wants a key, and {KEY_VARIABLE} is not set"
            )
            return JudgeError(f"{self} {told} (HTTP {status})")
        came = f"HTTP {status} {_short(self._hidden(response.text))}"
        if status in PASSING or status >= 500:
            return self._no_verdict(tries, came)
        return JudgeError(f"{self} does not take the question: {came}")

    def _no_verdict(self, tries: int, came: str) -> JudgeError:
        return JudgeError(f"{self} gave no verdict in {tries} tries; the last time there came {came}")

    @cached_property
    def _client(self) -> "openai.OpenAI":
        import openai

        return openai.OpenAI(api_key=self._secret or NO_KEY, base_url=self.url, timeout=self._timeout)

    def _hidden(self, text: str) -> str:
        """Servers may quote the key that they got."""
        return text.replace(self._secret, "***") if len(self._secret) >= SECRET else text


def base_url(url: str) -> str:
    """The address without the endpoint, which may be given along."""
    if "@" in url:
        raise ConfigError(f"the judge's url holds a user; accepted: a url without, and the key in {KEY_VARIABLE}")
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "?" not in url
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError(f"the judge's url is {url!r}; accepted: http(s)://HOST/v1, with or without {ENDPOINT}")
    return url.rstrip("/").removesuffix(ENDPOINT).rstrip("/")


def _secret() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{KEY_VARIABLE} has characters that no HTTP header carries; accepted: printable ASCII")
    return key


def _content(reply: str) -> str:
    """What a chat completion says; ValueError if it is none, or says nothing."""
    try:
        content = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"no chat completion but {_short(reply)}") from None
    if not isinstance(content, str) or not content.strip():
        raise ValueError("an empty answer")
    return content.strip()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= SHOWN else line[: SHOWN - 3] + "...")


def _key(model: str, messages: Messages, max_tokens: int) -> str:
    asked = json.dumps([model, messages, max_tokens], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


# --- the verdicts on the disk ----------------------------------------------------------------------------


class VerdictFile:
    """A JSON line per verdict. Threads and processes may add to the same file: each line is written under its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _locked(path) as file:
            lines, end = whole_lines(path.read_bytes())
            os.ftruncate(file, end)
        self.found = {key: str(line["verdict"]) for key, line in lines.items() if "verdict" in line}

    def add(self, key: str, model: str, verdict: str) -> None:
        """Returns when the line is on the disk, whole; a full disk leaves none of it."""
        data = json.dumps({"key": key, "model": model, "verdict": verdict}).encode() + b"\n"
        with _locked(self.path) as file:
            append(file, os.fstat(file).st_size, data)
        self.found[key] = verdict


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file, nobody else's meanwhile; what cannot be written is said in a sentence."""
    with telling(path, "verdicts"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)
