"""A small OpenAI-compatible server on loopback that answers as a script says."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.loopback import Handler, Server, running


class Reply(NamedTuple):
    """What the server does with one request. A `text` of None is an error of this `status`."""

    text: str | None = None
    status: int = 200
    delay: float = 0.0
    headers: dict[str, str] = {}  # noqa: RUF012
    error: dict[str, Any] = {}  # noqa: RUF012
    usage: bool = True


class _Handler(Handler):
    server: ChatServer

    def do_POST(self) -> None:  # noqa: N802
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
        headers = {"Content-Type": "application/json", **reply.headers}
        self.send(json.dumps(content).encode(), reply.status, headers)


class ChatServer(Server):
    """Serves `/v1/chat/completions`.

    `script(messages, n)` says what to reply to the n-th request (from 0) whose question, the last
    user message but for corrections, is the same.
    """

    handler = _Handler

    def __init__(self, script: Callable[[list[dict[str, str]], int], Reply]) -> None:
        super().__init__()
        self.script = script
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.seen: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"{super().url}/v1"


@contextmanager
def serving(script: Callable[[list[dict[str, str]], int], Reply]) -> Iterator[ChatServer]:
    """A running server, closed at the end."""
    with running(ChatServer(script)) as server:
        yield server
