"""The stand-in for Python: what it starts differs from what Python starts in its imports alone."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import PROJECT, wait_for
from tests.preloaded import PYTHON


def _told(code: int) -> None:
    """What a process knows of itself, on its streams; ends with the code."""
    print(sys.stdin.read(), os.getcwd(), sys.argv, os.environ.get("TELL_TOLD"))
    print(sys.executable, "torch" in sys.modules, file=sys.stderr)
    raise SystemExit(code)


def _wait(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(100)


def _call(python: str, folder: Path, function: Any, *arguments: Any, **env: str) -> Any:
    (folder / "call").write_bytes(pickle.dumps((function, arguments)))
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    paths = {"PYTHONPATH": str(PROJECT)}
    command = [python, "-m", "tests.fresh", str(folder)]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, **paths, **env}, text=True, **pipes
    )


def test_it_has_all_that_it_was_started_with(tmp_path):
    seen = []
    for python in (PYTHON, sys.executable):
        process = _call(python, tmp_path, _told, 7, TELL_TOLD="yes")
        said, noted = process.communicate("given")
        seen.append((said, process.returncode))
        assert noted.split()[-2:] == [python, str(python != PYTHON)]
    assert seen[0] == seen[1]
    assert f"given {tmp_path} " in seen[0][0]
    assert seen[0][1] == 7


def test_what_libraries_read_while_they_are_imported_makes_it_an_ordinary_one(tmp_path):
    process = _call(sys.executable, tmp_path, _told, 0, HF_HUB_OFFLINE="0")
    assert process.communicate("")[1].split()[-2:] == [PYTHON, "False"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it(number, tmp_path):
    file = tmp_path / "pid"
    process = _call(sys.executable, tmp_path, _wait, str(file))
    wait_for(lambda: file.is_file() and file.read_text(), process)
    forked = psutil.Process(int(file.read_text()))
    assert forked.pid != process.pid
    process.send_signal(number)
    assert process.wait(30) == -number
    psutil.wait_procs([forked], timeout=30)
    assert not forked.is_running() or forked.status() == psutil.STATUS_ZOMBIE
