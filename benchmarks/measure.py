"""Measuring by turns: every case once a round, in a process of its own, and medians at the end."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError

Sample = dict[str, Any]  # what a measured process says: seconds, peak_mb ...


@dataclass
class Case:
    """One thing to measure. `prepare` runs before each measurement and is not timed."""

    name: str
    run: Callable[[], Sample]
    prepare: Callable[[], object] = lambda: None
    samples: list[Sample] = field(default_factory=list)

    def median(self, key: str) -> float:
        return float(statistics.median(sample[key] for sample in self.samples))


def by_turns(cases: list[Case], rounds: int) -> None:
    """Measure A B C A B C ..., so that a busy machine is busy for all of them alike."""
    for number in range(rounds):
        for case in cases:
            case.prepare()
            sample = case.run()
            case.samples.append(sample)
            numbers = {key: v for key, v in sample.items() if isinstance(v, (int, float))}
            shown = ", ".join(f"{key} {value:,.2f}" for key, value in numbers.items())
            print(f"  round {number + 1} of {rounds}: {case.name}: {shown}", file=sys.stderr)


def ratio(one: Case, other: Case, key: str) -> float:
    """The median of `one` by `other`, taken round by round: what both suffer cancels."""
    pairs = zip(one.samples, other.samples, strict=True)
    return float(statistics.median(a[key] / b[key] for a, b in pairs))


def run_child(arguments: list[str], environment: Mapping[str, str]) -> Sample:
    """Run `python -m benchmarks.child ARGUMENTS`; its last line of output is the sample.

    Raises MachineError when it fails.
    """
    command = [sys.executable, "-m", "benchmarks.child", *arguments]
    done = subprocess.run(
        command, cwd=paths.PROJECT, env=dict(environment), capture_output=True, text=True
    )
    if done.returncode != 0:
        raise MachineError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    sample: Sample = json.loads(done.stdout.splitlines()[-1])
    return sample


def time_until(
    command: list[str], environment: Mapping[str, str], word: str, folder: Path
) -> Sample:
    """Seconds from the start of a process until `word` is in its output, and its CPU seconds.

    It is then left to end. The CPU time, which a busy machine does not lengthen, is of the whole
    process. Raises MachineError when the process ends without the word.
    """
    start, before = time.perf_counter(), _cpu_of_children()
    with subprocess.Popen(
        command,
        cwd=paths.PROJECT,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        said, elapsed = [], None
        for line in process.stdout:
            said.append(line)
            if elapsed is None and word in line:
                elapsed = time.perf_counter() - start
    if elapsed is None or process.returncode != 0:
        paths.write_text(folder / "failed.log", "".join(said))
        raise MachineError("the training failed:\n" + "".join(said[-25:]))
    return {"seconds": elapsed, "cpu": _cpu_of_children() - before}


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def machine() -> dict[str, Any]:
    """What was measured on; no name of it."""
    from importlib.metadata import version

    packages = ("ms-swift", "datasets", "tokenizers", "pyarrow", "numpy", "torch", "transformers")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gb": round(pages / 1e9),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
