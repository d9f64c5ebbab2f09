"""What `./run.sh test` runs: ruff, mypy, then pytest; every step runs, any failure is exit code 1.

./run.sh test                    everything
./run.sh test --fast             without the tests marked slow
./run.sh test tests/test_x.py    the checks, then these tests; further arguments are pytest's
./run.sh test --swift latest     the tests marked newest, in the environment of the newest ms-swift
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
CHECKS: dict[str, list[str]] = {
    "ruff check": [PYTHON, "-m", "ruff", "check", "--no-cache"],
    "ruff format": [PYTHON, "-m", "ruff", "format", "--check", "--no-cache"],
    "mypy": [PYTHON, "-m", "mypy", "tell_plugins", "benchmarks"],
}
# two files at a time: most tests start processes that use one core each
_PYTEST = [PYTHON, "-m", "pytest", "-vv", "-n", "2", "--dist", "loadfile"]
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
    results: list[tuple[str, int, float]] = []
    for name, command in steps(arguments).items():
        print(f"\n=== {name}", flush=True)
        start = time.monotonic()
        code = subprocess.run(command, cwd=PROJECT, check=False).returncode
        results.append((name, code, time.monotonic() - start))
        if code < 0 or code == 130:  # stopped from outside
            break
    print(f"\n=== summary\n{_table(results)}", flush=True)
    return int(any(code for _, code, _ in results))


def _table(results: Sequence[tuple[str, int, float]]) -> str:
    return "\n".join(
        f"{name:<12} {'ok' if code == 0 else f'FAILED ({code})':<12} {seconds:7.1f} s"
        for name, code, seconds in results
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
