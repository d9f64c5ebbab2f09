"""Doing the runs of a sweep as Ray tasks, on one machine or many.

A task starts the same worker as a run on this machine does, and the result is what the worker
leaves in the run's folder: the sweep's folder must be on a file system that all nodes share.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.progress import track
from tell_plugins.experiments.planning import cards_environment
from tell_plugins.experiments.runner import Tally, by_folder, count
from tell_plugins.experiments.store import Job

# what of this environment a worker on another node needs; never a key
_PASSED = ("TELL_", "HF_HUB_OFFLINE", "HF_HOME", "MODELSCOPE_CACHE", "TRANSFORMERS_OFFLINE")
_INVISIBLE = -1  # the exit code that stands for "no such folder here"


def run_on_ray(
    jobs: Sequence[Job], address: str, cards: Path, *, at_once: int | None, needs_gpu: bool
) -> Tally:
    """Do the jobs on the Ray cluster at `address` (`auto`, `local` or host:port).

    Every task asks for one GPU where the cluster has any and the recipe uses one, else for one
    CPU. Raises UserError without Ray or for an address without a cluster, MachineError when a
    node does not see the sweep's folder.
    """
    ray = _ray()
    _connect(ray, address)
    try:
        return _run(ray, jobs, cards, at_once=at_once, needs_gpu=needs_gpu)
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError(
            "Ray is not installed",
            where="--ray",
            remedy=f"{paths.needs('ray')}, or leave --ray out",
        ) from None
    return ray


def _connect(ray: Any, address: str) -> None:
    _reach(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, str(error).strip().splitlines()[0]) from None


def _reach(address: str) -> None:
    """Find out at once that nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str, reason: str) -> UserError:
    return UserError(
        f"no Ray cluster at '{address}': {reason}",
        where="--ray",
        allowed="auto (a cluster on this machine), local (start one), host:port",
        remedy="ray start --head, then --ray auto",
    )


def _run(
    ray: Any, jobs: Sequence[Job], cards: Path, *, at_once: int | None, needs_gpu: bool
) -> Tally:
    gpus = int(ray.cluster_resources().get("GPU", 0)) if needs_gpu else 0
    options = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 1}
    task = ray.remote(max_retries=0, **options)(_task())
    environment = passed_environment(cards)
    waiting = by_folder(jobs)
    running: dict[Any, tuple[Job, float]] = {}
    rest: dict[Path, list[Job]] = {}  # of a run that is being done: what else is asked of it
    tally = Tally()

    def give(group: list[Job]) -> None:
        job, *rest[group[0].folder] = group
        number = tally.done + tally.failed + len(running) + 1
        bar.write(f"[{number}/{len(jobs)}] {job.label}: given to Ray ({job.steps} steps)")
        handle = task.remote(str(paths.PROJECT), str(job.folder), job.evaluation, environment)
        running[handle] = (job, time.monotonic())

    def done(job: Job, seconds: float) -> None:
        bar.write(count(tally, job, seconds))
        bar.update()

    with track(len(jobs), "sweep", "runs") as bar:
        while waiting or running:
            while waiting and (at_once is None or len(running) < at_once):
                give(waiting.pop(0))
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            for handle in ready:
                job, start = running.pop(handle)
                _check(ray, handle, job)
                done(job, time.monotonic() - start)
                left = rest[job.folder]
                while left and left[0].failure:  # the training that it shares has failed just now
                    done(left.pop(0), 0.0)
                if left:
                    waiting.insert(0, left)
    return tally


def _check(ray: Any, handle: Any, job: Job) -> None:
    """Raise MachineError where a task could not even start its worker."""
    with contextlib.suppress(ray.exceptions.RayError):  # a node died: the job counts as failed
        node, code = ray.get(handle)
        if code == _INVISIBLE:
            raise MachineError(
                f"{job.folder} is not there on Ray's node {node}\n"
                "  remedy:  put --out on a file system that all nodes share, at the same path"
            )


def passed_environment(cards: Path) -> dict[str, str]:
    """What every worker gets of this process's environment."""
    found = {key: value for key, value in os.environ.items() if key.startswith(_PASSED)}
    for key in ("PYTHONPATH", "OMP_NUM_THREADS"):
        if key in os.environ:
            found[key] = os.environ[key]
    return {**found, "TELL_CARDS": cards_environment(cards)}


def _task() -> Any:
    """The function that Ray runs; made here, so that it is sent as code and needs no import."""

    def run(project: str, folder: str, evaluation: str, passed: dict[str, str]) -> tuple[str, int]:
        import os
        import platform
        import subprocess
        import sys

        if not os.path.isfile(os.path.join(folder, "run.json")):
            return platform.node(), -1
        parts = [project, *passed.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {
            **os.environ,
            **passed,
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(part for part in parts if part)),
        }
        # Ray kills the children of a worker process that ends. So the run's worker is no child of
        # it: it goes into a session of its own, sees its standard input close, and cleans up.
        detach = (
            "import os, sys\n"
            "if os.fork(): os._exit(0)\n"
            "os.setsid()\n"
            "os.execv(sys.argv[1], sys.argv[1:])\n"
        )
        worker = [sys.executable, "-m", "tell_plugins.experiments.worker", folder, evaluation]
        with open(os.path.join(folder, "worker.log"), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", detach, *worker],
                cwd=project,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            assert process.stdout is not None
            process.stdout.read()  # until the worker, which holds the other end, has ended
        process.wait()
        return platform.node(), 0

    return run
