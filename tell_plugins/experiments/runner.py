"""Doing the runs of a sweep, several at once, each in a process of its own: here, or on Ray.

A run's result is what its worker leaves in its folder; the sweep only starts workers and waits. A
Ray task starts the same worker: the sweep's folder must be on a file system that all nodes share.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import os
import platform
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any

from tell_plugins.bridge.embedded_model import WEIGHTS, is_embedded
from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError, at_least
from tell_plugins.core.progress import track
from tell_plugins.experiments.store import RUN, Job
from tell_plugins.recipe.models import model_folder
from tell_plugins.recipe.swift_keys import project_environment

_RUN_BYTES = 3 * 2**30  # of one training of a small model, measured; its libraries are half of it
_COPIES = 4  # of the weights, at most: as they are read, as they train, what a step computes
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
    told = "runs at once (default: one a GPU; on a CPU one a core, as memory allows)"
    parser.add_argument("--jobs", type=at_least(1), help=told)


def runs_on_cores(models: Collection[str]) -> int:
    """How many runs of these models a machine without a GPU does at once: one a core, as far as
    the free memory holds them; one where the size of a model is not known.

    A training of a small model gains little from a second core: one of `smollm2_sample_hold` took
    169 s on two cores, and two at once, a core each, 167 s.
    """
    import psutil

    sizes = [_weights(model) for model in models]
    if None in sizes:
        return 1
    needed = _RUN_BYTES + _COPIES * max(size or 0 for size in sizes)
    return max(1, min(cores(), psutil.virtual_memory().available // needed))


def _weights(model: str) -> int | None:
    """Bytes of a model's files; None where it is not on this machine."""
    if is_embedded(model):
        return WEIGHTS
    folder = model_folder(model)
    return None if folder is None else sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def slots(jobs: int | None, *, needs_gpu: bool, models: Collection[str]) -> list[dict[str, str]]:
    """The places for `jobs` runs of these models at once (default: one a GPU, else as
    `runs_on_cores` has it): what each sees of the machine, as environment.

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
    count = jobs or (1 if needs_gpu else runs_on_cores(models))
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


def run_here(jobs: Sequence[Job], slots: Sequence[Mapping[str, str]]) -> None:
    """Do the jobs in this machine's slots. Ctrl-C ends what runs and raises KeyboardInterrupt."""

    def worker(slot: Mapping[str, str]) -> Work:
        environment = {**project_environment(), **slot}
        return lambda job, stop: work(job.folder, job.evaluation, environment, stop)

    run_all(jobs, list(map(worker, slots)))


def run_all(jobs: Sequence[Job], workers: Sequence[Work], said: str = "started") -> None:
    """Do the jobs, as many at once as there are workers. Raises what one of these raises."""
    groups = iter(by_folder(jobs))  # each worker takes the next that is left
    stop, started, running = Event(), itertools.count(1), set[Job]()

    def do_one(do: Work, job: Job) -> None:
        start = time.monotonic()
        if not job.failure:  # else the training that it shares has failed just now
            bar.write(f"[{next(started)}/{len(jobs)}] {job.label}: {said}, {_what(job)}")
            running.add(job)
            do(job, stop)
            running.discard(job)
        if not stop.is_set():  # else it was ended, and is neither done nor failed
            bar.write(_ended(job, time.monotonic() - start))
            bar.update()

    def do_all(do: Work) -> None:
        for job in itertools.chain.from_iterable(groups):
            if stop.is_set():
                return
            do_one(do, job)

    with track(len(jobs), "sweep", "runs") as bar, ThreadPoolExecutor(len(workers)) as pool:
        waiting = {pool.submit(do_all, do) for do in workers}
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for worker in ended:
                    worker.result()
                if sys.stderr.isatty():
                    bar.set_postfix_str("; ".join(how_far(job) for job in list(running)))
        except BaseException:
            stop.set()
            raise


def how_far(job: Job) -> str:
    """Where a running job is: its optimizer step, or how many answers it has."""
    name = job.label[:30]
    log = job.folder / "train" / "logging.jsonl"
    if not job.trained and log.is_file():
        steps = re.findall(r'"global_step/max_steps": "([0-9/]+)"', log.read_text(errors="replace"))
        return f"{name}: step {steps[-1]}" if steps else name
    answers = [path.read_bytes().count(b"\n") for path in job.eval_folder.rglob("answers.jsonl")]
    return f"{name}: {sum(answers)} answers" if answers else name


def worker_command(folder: Path, evaluation: str) -> list[str]:
    """What does a job. Its standard input must stay open as long as it shall live."""
    return [sys.executable, "-m", "tell_plugins.experiments.worker", str(folder), evaluation]


def work(
    folder: Path,
    evaluation: str,
    environment: Mapping[str, str],
    stop: Event,
    front: Sequence[str] = (),
) -> None:
    """Do one job in a worker process and wait for it; `stop` ends it early.

    `front` starts the worker, which then need not be a child of this process: it has ended when
    nobody holds its output any more.
    """
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [*front, *worker_command(folder, evaluation)],
            cwd=paths.PROJECT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which then ends its workers
        )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout as output, process.stdin:
        lives = True
        while lives and not stop.is_set():
            said, _, _ = select.select([output], [], [], 0.2)
            lives = not said or bool(os.read(output.fileno(), 4096))
        process.stdin.close()
        output.read()
    process.wait()


def _ended(job: Job, seconds: float) -> str:
    """How a job ended, in one line and the end of its log."""
    failure = job.failure
    if job.done:
        return f"  done: {job.label}, {minutes(seconds)}"
    if not failure:
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


# --- on a Ray cluster -----------------------------------------------------------------------------

# what of this environment a worker on another node needs; never a key
_PASSED = (
    *("TELL_", "HF_HUB_OFFLINE", "HF_HOME", "MODELSCOPE_CACHE", "TRANSFORMERS_OFFLINE"),
    *("PYTHONPATH", "OMP_NUM_THREADS"),
)
# Ray kills the children of a process that ends. So a run's worker is no child of it: it sees its
# standard input close, and cleans up.
_DETACHED = (
    *(sys.executable, "-c"),
    "import os, sys\nif os.fork(): os._exit(0)\nos.setsid()\nos.execv(sys.argv[1], sys.argv[1:])",
)


def run_on_ray(jobs: Sequence[Job], address: str, *, at_once: int | None, needs_gpu: bool) -> None:
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
    passed = {k: text for k, text in project_environment().items() if k.startswith(_PASSED)}
    try:
        _reach(address)
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="warning",
            runtime_env={"env_vars": passed},
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster at '{address}': {str(error).strip().partition(chr(10))[0]}",
            where="--ray",
            allowed="auto (a cluster on this machine), local (start one), host:port",
            remedy="ray start --head, then --ray auto",
        ) from None
    try:
        run_with(ray, jobs, at_once=at_once, needs_gpu=needs_gpu)
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Find out at once that nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def run_with(ray: Any, jobs: Sequence[Job], *, at_once: int | None, needs_gpu: bool) -> None:
    """Do the jobs on the cluster that `ray` is connected with."""
    gpus = int(ray.cluster_resources().get("GPU", 0)) if needs_gpu else 0
    task = ray.remote(max_retries=0, num_cpus=1, num_gpus=min(gpus, 1))(on_node)

    def work(job: Job, stop: Event) -> None:
        handle = task.remote(job.folder, job.evaluation)
        while not stop.is_set() and not ray.wait([handle], num_returns=1, timeout=1.0)[0]:
            pass
        with contextlib.suppress(ray.exceptions.RayError):  # a node died: the job has failed
            blind = None if stop.is_set() else ray.get(handle)
            if blind is not None:
                raise MachineError(
                    f"{job.folder} is not there on Ray's node {blind}",
                    remedy="put --out on a file system that all nodes share, at the same path",
                )

    run_all(jobs, [work] * (at_once or len(by_folder(jobs))), "given to Ray")


def on_node(folder: Path, evaluation: str) -> str | None:
    """Do one job as a task of Ray; the node's name where it does not see the run's folder."""
    if not (folder / RUN).is_file():
        return platform.node()
    work(folder, evaluation, os.environ, Event(), _DETACHED)
    return None
