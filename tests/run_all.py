"""What `./run.sh test` runs: ruff, then pytest with mypy beside it; any failure is exit code 1.

./run.sh test                    everything
./run.sh test --fast             without the tests marked slow
./run.sh test tests/test_x.py    the checks, then these tests; further arguments are pytest's
./run.sh test --swift latest     the tests marked newest, in the environment of the newest ms-swift
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
CHECKS: dict[str, list[str]] = {
    "ruff check": [PYTHON, "-m", "ruff", "check", "--no-cache"],
    "ruff format": [PYTHON, "-m", "ruff", "format", "--check", "--no-cache"],
    "mypy": [PYTHON, "-m", "mypy", "tell_plugins", "benchmarks"],
}
_BESIDE = {"mypy"}  # takes a minute on one core, and pytest leaves both idle now and then
# two files at a time: most tests start processes that use one core each
_PYTEST = [PYTHON, "-m", "pytest", "-vv", "-n", "2", "--dist", "loadfile"]
_PYTEST += ["--no-loadscope-reorder"]  # tests/conftest.py orders the files
_PYTEST += ["--durations=15", "--durations-min=1"]


def steps(arguments: Sequence[str]) -> dict[str, list[str]]:
    """The commands to run, by name. `--fast` leaves out the tests marked slow."""
    passed = [part for part in arguments if part != "--fast"]
    if os.environ.get("TELL_SWIFT") == "latest":
        return {"pytest": [*_PYTEST, "-m", "newest", *passed]}
    fast = ["-m", "not slow"] if "--fast" in arguments else []
    return {**CHECKS, "pytest": [*_PYTEST, *fast, *passed]}


def main(arguments: Sequence[str]) -> int:
    """Run every step, show a table of how they went, and return 0 when all went well."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    commands = steps(arguments)
    results = []
    with ThreadPoolExecutor() as pool:
        beside = [
            pool.submit(_run, name, commands.pop(name), quiet=True)
            for name in _BESIDE & commands.keys()
        ]
        for name, command in commands.items():
            print(f"\n=== {name}", flush=True)
            results.append(_run(name, command))
            if results[-1].code < 0 or results[-1].code == 130:  # stopped from outside
                break
    for done in beside:
        print(f"\n=== {done.result().name}\n{done.result().output}", flush=True)
        results.append(done.result())
    print(f"\n=== summary\n{_table(results)}", flush=True)
    return int(any(done.code for done in results))


class _Done(NamedTuple):
    name: str
    code: int
    seconds: float
    output: str


def _run(name: str, command: Sequence[str], *, quiet: bool = False) -> _Done:
    """Run a step in the project's folder; `quiet` keeps what it prints."""
    start = time.monotonic()
    to = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} if quiet else {}
    done = subprocess.run(command, cwd=PROJECT, check=False, **to)
    return _Done(name, done.returncode, time.monotonic() - start, done.stdout or "")


def _table(results: Sequence[_Done]) -> str:
    lines = []
    for done in results:
        verdict = f"FAILED ({done.code})" if done.code else "ok"
        lines.append(f"{done.name:<12} {verdict:<12} {done.seconds:7.1f} s")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
