"""Doing the runs of a sweep, several at once, each in a process of its own on this machine.

A run's result is what its worker leaves in its folder; the sweep only starts workers and waits.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.progress import track
from tell_plugins.experiments.planning import cards_environment
from tell_plugins.experiments.store import Job
from tell_plugins.recipe.swift_keys import project_environment

_STOP_WAIT = 30.0  # seconds for a worker to end what it started
Work = Callable[[Job, Event], object]  # does a job and waits for it; the event ends it early


def visible_gpus() -> list[str]:
    """The GPUs that may be used, as `CUDA_VISIBLE_DEVICES` names them; empty without any."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part.strip() for part in named.split(",") if part.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True)
    return result.stdout.split() if result.returncode == 0 else []


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, help="runs at once (default: one a GPU, else 1)")


def check_jobs(jobs: int | None) -> None:
    """Raises UserError for fewer runs at once than one."""
    if jobs is not None and jobs < 1:
        raise UserError(
            "a count below 1",
            where="--jobs",
            allowed="1 and more",
            remedy="leave it out for one run a GPU, or one at a time",
        )


def slots(jobs: int | None, *, needs_gpu: bool) -> list[dict[str, str]]:
    """The places for `jobs` runs at once (default: one a GPU, else one): what each sees of the
    machine, as environment.

    Raises UserError for more jobs than GPUs: two runs on one GPU would share its memory.
    """
    gpus = visible_gpus() if needs_gpu else []
    if gpus and (jobs or 0) > len(gpus):
        raise UserError(
            f"{jobs} runs at once and {len(gpus)} GPUs",
            where="--jobs",
            allowed=f"1 to {len(gpus)}: a run has a GPU to itself",
            remedy=f"--jobs {len(gpus)}",
        )
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:jobs]]
    count = jobs or 1
    # as many threads as there are cores in each of several runs would slow all of them
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // count))}
    return [{} if "OMP_NUM_THREADS" in os.environ else threads] * count


def by_folder(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs in groups that share a run; those are done one after the other.

    What needs no training comes first, then the longest: so the last to end does not run alone.
    """
    groups: dict[Path, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.folder, []).append(job)
    return sorted(groups.values(), key=lambda group: (group[0].steps > 0, -group[0].steps))


def run_here(jobs: Sequence[Job], slots: Sequence[Mapping[str, str]], cards: Path) -> None:
    """Do the jobs in this machine's slots. Ctrl-C ends what runs and raises KeyboardInterrupt."""
    environment = {**project_environment(), "TELL_CARDS": cards_environment(cards)}
    run_all(jobs, [partial(work, {**environment, **slot}) for slot in slots])


def run_all(jobs: Sequence[Job], workers: Sequence[Work], said: str = "started") -> None:
    """Do the jobs, as many at once as there are workers. Raises what one of these raises."""
    waiting = iter(by_folder(jobs))
    started, stop, lock = itertools.count(1), Event(), Lock()
    running: set[Job] = set()
    errors: list[BaseException] = []

    def following() -> list[Job] | None:
        with lock:
            return None if stop.is_set() else next(waiting, None)

    def serve(do: Work) -> None:
        while group := following():
            for job in group:
                start = time.monotonic()
                if not job.failure:  # else the training that it shares has failed just now
                    bar.write(f"[{next(started)}/{len(jobs)}] {job.label}: {said}, {_what(job)}")
                    running.add(job)
                    do(job, stop)
                if stop.is_set():
                    return
                with lock:
                    running.discard(job)
                    bar.write(_ended(job, time.monotonic() - start))
                    bar.update()

    def served(do: Work) -> None:
        try:
            serve(do)
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=served, args=(do,), daemon=True) for do in workers]
    with track(len(jobs), "sweep", "runs") as bar:
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) and not errors:
                if sys.stderr.isatty():
                    bar.set_postfix_str("; ".join(how_far(job) for job in list(running)))
                stop.wait(0.5)
        finally:
            stop.set()
            for thread in threads:
                thread.join(_STOP_WAIT)
    if errors:
        raise errors[0]


def how_far(job: Job) -> str:
    """Where a running job is: its optimizer step, or how many answers it has."""
    name = job.label[:30]
    log = job.folder / "train" / "logging.jsonl"
    if not job.trained and log.is_file():
        steps = re.findall(r'"global_step/max_steps": "([0-9/]+)"', log.read_text(errors="replace"))
        return f"{name}: step {steps[-1]}" if steps else name
    answers = [path.read_bytes().count(b"\n") for path in job.eval_folder.rglob("answers.jsonl")]
    return f"{name}: {sum(answers)} answers" if answers else name


def worker_command(job: Job) -> list[str]:
    """What does a job. Its standard input must stay open as long as it shall live."""
    module = "tell_plugins.experiments.worker"
    return [sys.executable, "-m", module, str(job.folder), job.evaluation]


def work(environment: dict[str, str], job: Job, stop: Event) -> int:
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
        while process.poll() is None and not stop.wait(0.2):
            pass
    finally:
        process.stdin.close()
    return process.wait()


def _ended(job: Job, seconds: float) -> str:
    """How a job ended, in one line and the end of its log."""
    failure = job.failure
    if job.done:
        return f"  done: {job.label}, {minutes(seconds)}"
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
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forget_failures(jobs: Sequence[Job]) -> None:
    """Let failed jobs be tried again; their logs stay, and go on."""
    for job in jobs:
        for folder in (job.folder, job.eval_folder):
            (folder / "failed.json").unlink(missing_ok=True)
