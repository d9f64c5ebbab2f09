"""Processes of the tests that find torch, transformers and ms-swift imported already.

To import them takes longer than what most tests do with them. So `sys.executable` of the tests
is a stand-in: what runs a module of this project or a command of ms-swift, it has forked from a
server that has imported the libraries and run nothing; anything else it hands on to Python. The
process has the arguments, environment, folder and standard streams that it was started with; it
gets the signals that the stand-in gets, and dies with it.

A test of starting, ending or killing processes asks for the fixture `ordinary_python`.

The server is this file as a program, with the descriptor of its socket; so is the stand-in, with
the socket's address. It runs no line of Python's `site`, so it takes 20 ms.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import NoReturn

PYTHON = sys.executable
_MODULES = (  # besides a command of ms-swift: .../swift/cli/*.py
    "benchmarks.child",
    "swift.cli.main",
    "tell_plugins",
    "tell_plugins.bridge.keys",
    "tell_plugins.bridge.swift_cli",
    "tests.fresh",
)
# read while libraries are imported: with another value than the server's, the start is ordinary
_READ_AT_IMPORT = (
    *("HF_", "TRANSFORMERS_", "MODELSCOPE_", "TORCH_", "CUDA_"),
    *("PYTHON", "LANG", "LC_", "LOCAL_RANK"),
)
_READ_LATER = ("PYTHONPATH", "PYTHONWARNINGS", "PYTHONUNBUFFERED", "MODELSCOPE_DOMAIN", "LC_CTYPE")
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ORDINARY, _STARTED = b"o", b"s"


def _is_forked(arguments: list[str]) -> bool:
    """Whether `python ARGUMENTS` runs what a process of the server runs."""
    if arguments[:1] == ["-m"]:
        return arguments[1:2] != [] and arguments[1] in _MODULES
    return bool(arguments) and os.path.dirname(arguments[0]).endswith(os.path.join("swift", "cli"))


@contextlib.contextmanager
def preloaded_python() -> Iterator[None]:
    """`sys.executable` is the stand-in while the block runs; its server imports when first used."""
    import shlex
    import subprocess
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(prefix="tell-") as name:
        address, stand_in = Path(name, "socket"), Path(name, "python")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # what is sent stays whole
        listener.bind(str(address))
        listener.listen()
        words = shlex.join([PYTHON, "-IS", __file__, str(address)])
        stand_in.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        stand_in.chmod(0o755)
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        server = subprocess.Popen(
            [PYTHON, __file__, "--serve", str(listener.fileno())],
            env=os.environ | one_thread | {"LOG_LEVEL": "INFO"},
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE,  # a pipe: no process takes its own for seekable
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        listener.close()  # without a server nothing listens, and every start is an ordinary one
        sys.executable = str(stand_in)
        try:
            yield
        finally:
            sys.executable = PYTHON
            server.communicate()  # its input closes, and it ends


def _stand_in(address: str, arguments: list[str]) -> None:
    """Have the server do it and end as it ends, or become an ordinary Python."""
    if hasattr(os, "pidfd_open") and _is_forked(arguments):  # else it is not Linux
        with contextlib.suppress(OSError):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
                server.connect(address)
                _have_it_done(server, arguments)
    os.execv(PYTHON, [PYTHON, *arguments])


def _have_it_done(server: socket.socket, arguments: list[str]) -> None:
    """Ends this process as the forked one ended; returns where the server forks none."""
    asked = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
    if server.recv(1) != _STARTED:
        return
    for number in _FORWARDED:
        signal.signal(number, lambda number, _: server.send(bytes([number])))
    code, number = server.recv(2) or (1, 0)  # nothing: the tests have ended
    if number:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(code)


_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "swift.pipelines.train.sft",
    "swift.infer_engine.transformers_engine",
    "torch.utils.tensorboard",
    "matplotlib.pyplot",
)


class _Request:
    """What a stand-in asks for."""

    def __init__(self, client: socket.socket) -> None:
        text, self.streams, _, _ = socket.recv_fds(client, 2**22, 3)
        asked = json.loads(text)
        self.arguments: list[str] = asked["arguments"]
        self.environment: dict[str, str] = asked["environment"]
        self.folder: str = asked["folder"]

    @property
    def is_served(self) -> bool:
        """Whether the libraries are imported here as they would be in an ordinary process."""
        no_warnings = self.environment.get("PYTHONWARNINGS", "ignore") == "ignore"
        return no_warnings and _read(self.environment) == _read(_SERVER)


_SERVER = dict(os.environ)


def _read(environment: dict[str, str]) -> dict[str, str]:
    """What of an environment is read while the libraries are imported."""
    return {
        key: value
        for key, value in environment.items()
        if key.startswith(_READ_AT_IMPORT) and key not in _READ_LATER
    }


def _serve(listener: socket.socket) -> _Request:
    """Fork for each request; returns in the process that shall fulfil it. Ends with the tests."""
    import select

    while 0 not in select.select([listener, 0], [], [])[0]:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _forked(client)
        client.close()
    os._exit(0)


def _forked(client: socket.socket) -> _Request:
    """Fork once more and watch the new process; returns in that one."""
    request = _Request(client)
    if not request.is_served:
        client.send(_ORDINARY)
        os._exit(0)
    os.setsid()
    client.send(_STARTED)
    child = os.fork()
    with contextlib.suppress(OSError):
        os.setpgid(child, child)  # here and there: whichever comes first
    if child == 0:
        client.close()
        return request
    for stream in request.streams:
        os.close(stream)
    try:
        _watch(client, child)
    finally:
        os.kill(child, signal.SIGKILL)
        os._exit(0)


def _watch(client: socket.socket, child: int) -> None:
    """Hand signals on to the process and its end back; returns when nobody waits for it."""
    import select

    end = os.pidfd_open(child)
    while True:
        ready = select.select([client, end, 0], [], [])[0]
        if end in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            client.send(bytes([max(code, 0), max(-code, 0)]))
            os._exit(0)
        number = client.recv(1) if client in ready else b""
        if not number:
            return
        os.killpg(child, number[0])


def _fulfil(request: _Request) -> None:
    """Become the process that was asked for, but for what it imports."""
    import runpy

    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request.folder)
    set_by_import = {key: value for key, value in os.environ.items() if key not in _SERVER}
    os.environ.clear()
    os.environ.update(set_by_import | request.environment)
    _set_log_level(request)
    first, *words = request.arguments
    is_module = first == "-m"
    path = request.environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [request.folder if is_module else os.path.dirname(first), *filter(None, path)]
    sys.argv = [first, *words[is_module:]]
    code: object = None
    try:
        if is_module:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        code = end.code
    if code is None or isinstance(code, int):
        _end(code or 0)
    sys.exit(str(code))


def _end(code: int) -> NoReturn:
    """End as Python does, but for taking thousands of modules apart, which takes half a second."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)


def _set_log_level(request: _Request) -> None:
    """What ms-swift reads while it is imported; `tell_plugins` itself asks it for less by then."""
    import logging

    quiet = request.arguments[:2] == ["-m", "tell_plugins"]
    level = request.environment.get("LOG_LEVEL", "WARNING" if quiet else "INFO").upper()
    for name in ("swift", "modelscope"):
        logging.getLogger(name).setLevel(level)
    for handler in logging.getLogger("swift").handlers:
        handler.setLevel(level)


def _import_libraries() -> None:
    import gc
    import importlib

    for name in _LIBRARIES:
        with contextlib.suppress(ImportError):  # another ms-swift may have it elsewhere
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else the first collection of a process would copy all that is imported


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        import select

        del sys.path[0]  # the folder of this file
        listener = socket.socket(fileno=int(sys.argv[2]))
        if 0 in select.select([listener, 0], [], [])[0]:
            sys.exit()
        _import_libraries()
        sys.executable = os.path.join(os.path.dirname(listener.getsockname()), "python")
        _fulfil(_serve(listener))
    else:
        _stand_in(sys.argv[1], sys.argv[2:])
