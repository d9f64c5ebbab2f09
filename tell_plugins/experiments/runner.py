"""Doing the runs of a sweep, several at once, each in processes of its own: here, or on Ray.

A run's result is what its processes leave in its folder; on Ray that must be on a file system that
all nodes share.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any

from tell_plugins.bridge.embedded_model import WEIGHTS, is_embedded
from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError, at_least
from tell_plugins.core.progress import track
from tell_plugins.experiments.guard import guarded
from tell_plugins.experiments.store import RUN, Run
from tell_plugins.experiments.worker import Worker
from tell_plugins.recipe.models import model_folder
from tell_plugins.recipe.swift_keys import project_environment

_RUN_BYTES = 3 * 2**30  # of one training of a small model, measured; its libraries are half of it
_COPIES = 4  # of the weights, at most: as they are read, as they train, what a step computes


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
    import psutil  # not among the packages that `--dry-run` does with

    sizes = [_weights(model) for model in models]
    if 0 in sizes:
        return 1
    needed = _RUN_BYTES + _COPIES * max(sizes)
    return max(1, min(cores(), psutil.virtual_memory().available // needed))


def _weights(model: str) -> int:
    """Bytes of a model's files; 0 where it is not on this machine."""
    folder = None if is_embedded(model) else model_folder(model)
    files = folder.glob("*.safetensors") if folder else ()
    return WEIGHTS if is_embedded(model) else sum(file.stat().st_size for file in files)


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


def by_folder(jobs: Sequence[Run]) -> list[list[Run]]:
    """The jobs in groups that share a run; those are done one after the other.

    What needs no training comes first, then the longest: so the last to end does not run alone.
    """
    groups: dict[Path, list[Run]] = defaultdict(list)
    for job in jobs:
        groups[job.folder].append(job)
    return sorted(groups.values(), key=lambda group: (group[0].steps > 0, -group[0].steps))


def run_here(jobs: Sequence[Run], slots: Sequence[Mapping[str, str]]) -> None:
    """Do the jobs in this machine's slots. Ctrl-C ends what runs and raises KeyboardInterrupt."""
    here, stop = project_environment(), Event()
    with guarded(jobs[0].folder.parent, here):
        run_all(jobs, [Worker({**here, **slot}, stop).do for slot in slots], stop)


def run_all(
    jobs: Sequence[Run],
    workers: Sequence[Callable[[Run], object]],
    stop: Event,
    said: str = "started",
) -> None:
    """Do the jobs, as many at once as there are workers, which each do one and wait for it. Raises
    what one of these raises, and sets `stop`, which ends the others."""
    groups = iter(by_folder(jobs))  # each worker takes the next that is left
    started, running = itertools.count(1), dict[Path, Run]()

    def do_all(do: Callable[[Run], object]) -> None:
        for job in itertools.chain.from_iterable(groups):
            if stop.is_set():
                return
            start = time.monotonic()
            if not job.failure:  # else the training that it shares has failed just now
                bar.write(f"[{next(started)}/{len(jobs)}] {job.label}: {said}, {_what(job)}")
                running[job.folder] = job
                do(job)
                del running[job.folder]
            if not stop.is_set():  # else it was ended, and is neither done nor failed
                bar.write(_ended(job, time.monotonic() - start))
                bar.update()

    with track(len(jobs), "sweep", "runs") as bar, ThreadPoolExecutor(len(workers)) as pool:
        waiting = {pool.submit(do_all, do) for do in workers}
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for worker in ended:
                    worker.result()
                if sys.stderr.isatty():
                    bar.set_postfix_str("; ".join(map(how_far, list(running.values()))))
        except BaseException:
            stop.set()
            raise


def how_far(job: Run) -> str:
    """Where a running job is: its optimizer step, or how many answers it has."""
    name, log = job.label[:30], job.folder / "train" / "logging.jsonl"
    if not job.trained:
        said = log.read_text(errors="replace") if log.is_file() else ""
        steps = re.findall(r'"global_step/max_steps": "([0-9/]+)"', said)
        return f"{name}: step {steps[-1]}" if steps else name
    answers = [path.read_bytes().count(b"\n") for path in job.eval_folder.rglob("answers.jsonl")]
    return f"{name}: {sum(answers)} answers" if answers else name


def _ended(job: Run, seconds: float) -> str:
    """How a job ended, in one line and the end of its log."""
    failure = job.failure
    if job.done:
        return f"  done: {job.label}, {minutes(seconds)}"
    if not failure:
        return f"  not finished: {job.label}"
    folder = job.folder if failure["step"].startswith("train") else job.eval_folder
    last = failure["tail"][-1] if failure["tail"] else ""
    return (
        f"  failed: {job.label}: {failure['step']} ended with {failure['exit']}\n"
        f"    {last[:200]}\n    log: {paths.shown(folder / failure['log'])}"
    )


def _what(job: Run) -> str:
    if job.trained:
        return f"answers only ({paths.shown(job.eval_folder)})"
    return f"{job.steps} steps ({paths.shown(job.folder)})"


def minutes(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forget_failures(jobs: Sequence[Run]) -> None:
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
# Ray kills the children of a process that ends, and not theirs. So a run's guard is no child of it:
# it sees its standard input close, and cleans up.
_DETACHED = (
    *(sys.executable, "-c"),
    "import os, sys\nif os.fork(): os._exit(0)\nos.setsid()\nos.execv(sys.argv[1], sys.argv[1:])",
)


def run_on_ray(jobs: Sequence[Run], address: str, *, at_once: int | None, needs_gpu: bool) -> None:
    """Do the jobs on the Ray cluster at `address` (`auto`, `local` or host:port).

    Every task asks for one GPU where the cluster has any and the recipe uses one, else for one
    CPU. Raises UserError without Ray or for an address without a cluster, MachineError when a
    node does not see the sweep's folder.
    """
    passed = {k: text for k, text in project_environment().items() if k.startswith(_PASSED)}
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        ray: Any = importlib.import_module("ray")
        if host and port.isdigit():  # if nobody listens Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        more = {"log_to_driver": False, "logging_level": "warning"}
        ray.init(address=address, runtime_env={"env_vars": passed}, **more)
    except ImportError:
        remedy = f"{paths.needs('ray')}, or leave --ray out"
        raise UserError("Ray is not installed", where="--ray", remedy=remedy) from None
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


def run_with(ray: Any, jobs: Sequence[Run], *, at_once: int | None, needs_gpu: bool) -> None:
    """Do the jobs on the cluster that `ray` is connected with."""
    gpus = int(ray.cluster_resources().get("GPU", 0)) if needs_gpu else 0
    task, stop = ray.remote(max_retries=0, num_cpus=1, num_gpus=min(gpus, 1))(on_node), Event()

    def work(job: Run) -> None:
        handle = task.remote(job)
        while not stop.is_set() and not ray.wait([handle], num_returns=1, timeout=1.0)[0]:
            pass
        with contextlib.suppress(ray.exceptions.RayError):  # a node died: the job has failed
            blind = None if stop.is_set() else ray.get(handle)
            if blind is not None:
                raise MachineError(
                    f"{job.folder} is not there on Ray's node {blind}",
                    remedy="put --out on a file system that all nodes share, at the same path",
                )

    run_all(jobs, [work] * (at_once or len(by_folder(jobs))), stop, "given to Ray")


def on_node(job: Run) -> str | None:
    """Do one job as a task of Ray; the node's name where it does not see the run's folder."""
    if not (job.folder / RUN).is_file():
        return platform.node()
    with guarded(job.folder, os.environ, _DETACHED):
        Worker(os.environ, Event()).do(job)
    return None
