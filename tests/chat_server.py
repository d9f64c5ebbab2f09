"""A small OpenAI-compatible server on loopback that answers as a script says."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """What the server does with one request. A `text` of None is an error of this `status`."""

    text: str | None = None
    status: int = 200
    delay: float = 0.0
    headers: dict[str, str] = {}  # noqa: RUF012
    error: dict[str, Any] = {}  # noqa: RUF012
    usage: bool = True


class ChatServer(ThreadingHTTPServer):
    """Serves `/v1/chat/completions`.

    `script(messages, n)` says what to reply to the n-th request (from 0) whose question, the last
    user message but for corrections, is the same.
    """

    daemon_threads = True

    def __init__(self, script: Callable[[list[dict[str, str]], int], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.seen: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of these tests."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = next(m["content"] for m in body["messages"] if m["role"] == "user")
        with server.lock:
            nth = server.seen[question]
            server.seen[question] += 1
            server.requests.append(body)
            server.times.append(time.monotonic())
            server.keys.append(self.headers.get("Authorization"))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            reply = server.script(body["messages"], nth)
            time.sleep(reply.delay)
        finally:
            with server.lock:
                server.at_once -= 1
        if reply.text is None:
            content: dict[str, Any] = {"error": {"message": "scripted", **reply.error}}
        else:
            message = {"role": "assistant", "content": reply.text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            content = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
            content["choices"] = [choice]
            if reply.usage:
                content["usage"] = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        raw = json.dumps(content).encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(script: Callable[[list[dict[str, str]], int], Reply]) -> Iterator[ChatServer]:
    """A running server, closed at the end."""
    server = ChatServer(script)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
