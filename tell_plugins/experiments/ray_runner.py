"""Doing the runs of a sweep as Ray tasks, on one machine or many.

A task starts the same worker as a run on this machine does, and the result is what the worker
leaves in the run's folder: the sweep's folder must be on a file system that all nodes share.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.experiments.planning import cards_environment
from tell_plugins.experiments.runner import by_folder, run_all
from tell_plugins.experiments.store import Job

# what of this environment a worker on another node needs; never a key
_PASSED = (
    *("TELL_", "HF_HUB_OFFLINE", "HF_HOME", "MODELSCOPE_CACHE", "TRANSFORMERS_OFFLINE"),
    *("PYTHONPATH", "OMP_NUM_THREADS"),
)


def run_on_ray(
    jobs: Sequence[Job], address: str, cards: Path, *, at_once: int | None, needs_gpu: bool
) -> None:
    """Do the jobs on the Ray cluster at `address` (`auto`, `local` or host:port).

    Every task asks for one GPU where the cluster has any and the recipe uses one, else for one
    CPU. Raises UserError without Ray or for an address without a cluster, MachineError when a
    node does not see the sweep's folder.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UserError(
            "Ray is not installed",
            where="--ray",
            remedy=f"{paths.needs('ray')}, or leave --ray out",
        ) from None
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster at '{address}': {str(error).strip().partition(chr(10))[0]}",
            where="--ray",
            allowed="auto (a cluster on this machine), local (start one), host:port",
            remedy="ray start --head, then --ray auto",
        ) from None
    try:
        run_with(ray, jobs, cards, at_once=at_once, needs_gpu=needs_gpu)
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Find out at once that nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def run_with(
    ray: Any, jobs: Sequence[Job], cards: Path, *, at_once: int | None, needs_gpu: bool
) -> None:
    """Do the jobs on the cluster that `ray` is connected with."""
    gpus = int(ray.cluster_resources().get("GPU", 0)) if needs_gpu else 0
    options = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 1}
    task = ray.remote(max_retries=0, **options)(_task())
    passed = {key: value for key, value in os.environ.items() if key.startswith(_PASSED)}
    passed["TELL_CARDS"] = cards_environment(cards)

    def work(job: Job, stop: Event) -> None:
        handle = task.remote(str(paths.PROJECT), str(job.folder), job.evaluation, passed)
        while not stop.is_set() and not ray.wait([handle], num_returns=1, timeout=1.0)[0]:
            pass
        with contextlib.suppress(ray.exceptions.RayError):  # a node died: the job has failed
            node, seen = (None, True) if stop.is_set() else ray.get(handle)
            if not seen:
                raise MachineError(
                    f"{job.folder} is not there on Ray's node {node}",
                    remedy="put --out on a file system that all nodes share, at the same path",
                )

    run_all(jobs, [work] * (at_once or len(by_folder(jobs))), "given to Ray")


def _task() -> Any:
    """The function that Ray runs; made here, so that it is sent as code and needs no import.

    It gives the node's name, and whether the node sees the run's folder.
    """

    def run(project: str, folder: str, evaluation: str, passed: dict[str, str]) -> tuple[str, bool]:
        import os
        import platform
        import subprocess
        import sys

        if not os.path.isfile(os.path.join(folder, "run.json")):
            return platform.node(), False
        parts = [project, *passed.get("PYTHONPATH", "").split(os.pathsep)]
        path = os.pathsep.join(dict.fromkeys(part for part in parts if part))
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
                env={**os.environ, **passed, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            assert process.stdout is not None
            process.stdout.read()  # until the worker, which holds the other end, has ended
        process.wait()
        return platform.node(), True

    return run
