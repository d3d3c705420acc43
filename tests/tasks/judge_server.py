"""A chat server on loopback that speaks OpenAI's protocol and does what a script says: right, slow, wrong, down."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RETRY_DELAY = "openai._base_client.INITIAL_RETRY_DELAY"  # seconds before a second try, for a test to shorten
Reply = tuple[float, int, bytes, dict[str, str]]  # seconds to wait, status, body, headers
Script = Sequence[Reply] | Callable[[str], Reply]


def says(content: str | None, after: float = 0.0) -> Reply:
    """A chat completion, after so many seconds."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "served", "choices": [choice]}
    return after, 200, json.dumps(body).encode(), {}


def fails(status: int, text: str = "it broke", **headers: str) -> Reply:
    return 0.0, status, json.dumps({"error": {"message": text}}).encode(), headers


def sends(body: bytes) -> Reply:
    """Whatever it is, as if it were an answer."""
    return 0.0, 200, body, {}


class JudgeServer(ThreadingHTTPServer):
    """`script`: the replies in turn, the last one for good; or what is replied to a question."""

    daemon_threads = True

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def reply_to(self, question: dict[str, Any], key: str) -> Reply:
        with self.lock:
            self.asked.append(question)
            self.keys.append(key)
            turn = len(self.asked)
        if callable(self.script):
            return self.script(question["messages"][-1]["content"])
        return self.script[min(turn, len(self.script)) - 1]

    def handle_error(self, *_: Any) -> None:
        """A client that waits no longer has closed the connection."""


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        seconds, status, body, headers = self.server.reply_to(question, self.headers["Authorization"])
        if self.path != "/v1/chat/completions":
            status, body = 404, b"{}"
        time.sleep(seconds)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def judge_server(script: Script) -> Iterator[JudgeServer]:
    with JudgeServer(script) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
