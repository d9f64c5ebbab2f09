"""A real HTTP server on loopback that serves files and misbehaves on request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha1
from urllib.parse import unquote, urlsplit

from tests.loopback import Handler, Server, running

Answer = Callable[["_Handler", bytes], None]


class _Handler(Handler):
    server: FileServer

    def do_GET(self) -> None:  # noqa: N802
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(path)
        content = self.server.files.get(path)
        if content is None:
            self.send_error(404)
            return
        if self.server.script:
            self.server.script.pop(0)(self, content)
        else:
            (self.server.always or whole)(self, content)

    do_HEAD = do_GET  # noqa: N815

    def start(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def body(self, content: bytes) -> None:
        if self.command != "HEAD":
            self.wfile.write(content)
            self.wfile.flush()


class FileServer(Server):
    """Serves `files` by path. `script` holds answers for the next requests, in order."""

    handler = _Handler

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.script: list[Answer] = []
        self.always: Answer | None = None


def whole(handler: _Handler, content: bytes) -> None:
    """The file."""
    handler.start(200, len(content))
    handler.body(content)


def cut_after(size: int, seconds: float = 0.0) -> Answer:
    """The connection breaks after `size` bytes and some seconds of silence."""

    def answer(handler: _Handler, content: bytes) -> None:
        handler.start(200, len(content))
        handler.body(content[:size])
        time.sleep(seconds)
        handler.close_connection = True

    return answer


def slowly(seconds: float, pieces: int = 10) -> Answer:
    """The whole file, over `seconds`."""

    def answer(handler: _Handler, content: bytes) -> None:
        handler.start(200, len(content))
        step = -(-len(content) // pieces)
        for start in range(0, len(content), step):
            handler.body(content[start : start + step])
            time.sleep(seconds / pieces)

    return answer


def status(code: int, **headers: str) -> Answer:
    """An empty answer with this status."""
    return lambda handler, _content: handler.start(code, 0, **headers)


def other(content: bytes) -> Answer:
    """Another file than the one asked for."""
    return lambda handler, _content: whole(handler, content)


def blob_of(content: bytes) -> str:
    """The git blob id of a file."""
    return sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving() -> Iterator[FileServer]:
    """A server that runs while the block does."""
    with running(FileServer()) as server:
        yield server
