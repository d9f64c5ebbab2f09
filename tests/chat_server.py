"""A small OpenAI-compatible server on loopback that answers as a script says."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.loopback import Handler, Server, running


class Reply(NamedTuple):
    """What the server does with one request; a `status` other than 200 is an error."""

    text: str | None = None
    status: int = 200
    delay: float = 0.0
    headers: dict[str, str] = {}  # noqa: RUF012
    error: dict[str, Any] = {}  # noqa: RUF012
    finish: str = "stop"
    tokens: int = 7  # of the prompt

    def content(self) -> dict[str, Any]:
        if self.status != 200:
            return {"error": {"message": "scripted", **self.error}}
        message = {"role": "assistant", "content": self.text}
        content = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        content["choices"] = [{"index": 0, "finish_reason": self.finish, "message": message}]
        usage = {"prompt_tokens": self.tokens, "completion_tokens": 3}
        return {**content, "usage": usage | {"total_tokens": self.tokens + 3}}


Script = Callable[[dict[str, Any], int], Reply]


def echo(body: dict[str, Any], nth: int) -> Reply:
    """The first message, in capital letters."""
    return Reply(body["messages"][0]["content"].upper())


class _Handler(Handler):
    server: ChatServer

    def do_GET(self) -> None:  # noqa: N802
        models = [{"id": name, "object": "model", "created": 0} for name in self.server.models]
        known = self.path == "/v1/models" and bool(models)
        self._send({"object": "list", "data": models}, 200 if known else 404)

    def do_POST(self) -> None:  # noqa: N802
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = next(m["content"] for m in body["messages"] if m["role"] == "user")
        with server.lock:
            nth = server.seen[question]
            server.seen[question] += 1
            server.requests.append(body)
            server.keys.append(self.headers.get("Authorization"))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            reply = server.script(body, nth)
            time.sleep(reply.delay)
        finally:
            with server.lock:
                server.at_once -= 1
        self._send(reply.content(), reply.status, reply.headers)

    def _send(self, content: Any, status: int, headers: Mapping[str, str] = {}) -> None:
        kind = {"Content-Type": "application/json"}
        self.send(json.dumps(content).encode(), status, {**kind, **headers})


class ChatServer(Server):
    """Serves `/v1/chat/completions`, and lists `models`.

    `script(body, n)` says what to reply to the n-th request (from 0) whose question, the first
    user message, is the same.
    """

    handler = _Handler

    def __init__(self, script: Script, models: Sequence[str]) -> None:
        super().__init__()
        self.script, self.models = script, models
        self.keys: list[str | None] = []
        self.seen: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"{super().url}/v1"


@contextmanager
def serving(script: Script = echo, models: Sequence[str] = ("m",)) -> Iterator[ChatServer]:
    """A running server, closed at the end."""
    with running(ChatServer(script, models)) as server:
        yield server
