"""Doing the runs of a sweep on this machine, several at once, each in a process of its own.

A run's result is what its worker leaves in its folder; the sweep only starts workers and waits.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread

from tell_plugins.core import paths
from tell_plugins.core.progress import track
from tell_plugins.experiments.machine import Slot
from tell_plugins.experiments.planning import cards_environment
from tell_plugins.experiments.store import Job
from tell_plugins.recipe.swift_keys import project_environment

_STOP_WAIT = 30.0  # seconds for a worker to end what it started
Say = Callable[[str], None]


def worker_command(job: Job) -> list[str]:
    """What does a job. Its standard input must stay open as long as it shall live."""
    module = "tell_plugins.experiments.worker"
    return [sys.executable, "-m", module, str(job.folder), job.evaluation]


def worker_environment(cards: Path) -> dict[str, str]:
    """The environment of every worker on this machine."""
    return {**project_environment(), "TELL_CARDS": cards_environment(cards)}


@dataclass
class Tally:
    """How the jobs of a sweep ended."""

    done: int = 0
    failed: int = 0


def by_folder(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs in groups that share a run; those are done one after the other.

    What needs no training comes first, then the longest: so the last to end does not run alone.
    """
    groups: dict[Path, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.folder, []).append(job)
    return sorted(groups.values(), key=lambda group: (group[0].trains, -group[0].steps))


def run_here(jobs: Sequence[Job], slots: Sequence[Slot], cards: Path) -> Tally:
    """Do the jobs in this machine's slots. Ctrl-C ends what runs and raises KeyboardInterrupt."""
    waiting: Queue[list[Job]] = Queue()
    for group in by_folder(jobs):
        waiting.put(group)
    started = itertools.count(1)
    ended: Queue[tuple[Job, float]] = Queue()
    running: set[Job] = set()
    stop = Event()
    environment = worker_environment(cards)
    with track(len(jobs), "sweep", "runs") as bar:

        def serve(slot: Slot) -> None:
            while not stop.is_set():
                try:
                    group = waiting.get_nowait()
                except Empty:
                    return
                for job in group:
                    if stop.is_set():
                        return
                    if job.failure:  # the training that it shares has failed just now
                        ended.put((job, 0.0))
                        continue
                    bar.write(f"[{next(started)}/{len(jobs)}] {job.label}: started, {_what(job)}")
                    start = time.monotonic()
                    running.add(job)
                    work(job, {**environment, **slot.environment()}, stop)
                    ended.put((job, time.monotonic() - start))

        threads = [Thread(target=serve, args=(slot,), daemon=True) for slot in slots]
        for thread in threads:
            thread.start()
        tally = Tally()
        try:
            while any(thread.is_alive() for thread in threads) or not ended.empty():
                with contextlib.suppress(Empty):
                    job, seconds = ended.get(timeout=1.0)
                    running.discard(job)
                    bar.write(count(tally, job, seconds))
                    bar.update()
                if sys.stderr.isatty():
                    bar.set_postfix_str("; ".join(how_far(job) for job in list(running)))
        except BaseException:
            stop.set()
            for thread in threads:
                thread.join(_STOP_WAIT)
            raise
    return tally


def how_far(job: Job) -> str:
    """Where a running job is: its optimizer step, or how many answers it has."""
    name = job.label[:30]
    log = job.folder / "train" / "logging.jsonl"
    if not job.trained and log.is_file():
        steps = re.findall(r'"global_step/max_steps": "([0-9/]+)"', log.read_text(errors="replace"))
        return f"{name}: step {steps[-1]}" if steps else name
    answers = [path.read_bytes().count(b"\n") for path in job.eval_folder.rglob("answers.jsonl")]
    return f"{name}: {sum(answers)} answers" if answers else name


def work(job: Job, environment: dict[str, str], stop: Event) -> int:
    """Do one job in a worker process and wait for it; `stop` ends it early. Its exit code."""
    with (job.folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            worker_command(job),
            cwd=paths.PROJECT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which then ends its workers
        )
    assert process.stdin is not None
    try:
        while process.poll() is None:
            if stop.wait(0.2):
                break
    finally:
        process.stdin.close()
    return process.wait()


def count(tally: Tally, job: Job, seconds: float) -> str:
    """Count how a job ended and say it in one line."""
    if job.done:
        tally.done += 1
        return f"  done: {job.label}, {minutes(seconds)}"
    tally.failed += 1
    failure = job.failure
    if failure is None:
        return f"  failed: {job.label}, see {paths.shown(job.folder / 'worker.log')}"
    folder = job.folder if failure["step"].startswith("train") else job.eval_folder
    last = failure["tail"][-1] if failure["tail"] else ""
    return (
        f"  failed: {job.label}: {failure['step']} ended with {failure['exit']}\n"
        f"    {last[:200]}\n    log: {paths.shown(folder / failure['log'])}"
    )


def _what(job: Job) -> str:
    if job.trained:
        return f"answers only ({paths.shown(job.eval_folder)})"
    return f"{job.steps} steps ({paths.shown(job.folder)})"


def minutes(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def forget_failures(jobs: Sequence[Job]) -> None:
    """Let failed jobs be tried again; their logs stay, numbered."""
    for job in jobs:
        for folder in (job.folder, job.eval_folder):
            failed = folder / "failed.json"
            if not failed.is_file():
                continue
            number = len(list(folder.glob("failed-*.json"))) + 1
            for log in (*folder.glob("train.log"), *folder.glob("eval.log")):
                os.replace(log, folder / f"{log.stem}-failed-{number}.log")
            os.replace(failed, folder / f"failed-{number}.json")
