"""One run of a sweep, in a process of its own: train, then answer; go on where it stopped.

    python -m tell_plugins.experiments.worker RUN_FOLDER EVALUATION < pipe

Whoever starts it holds the other end of its standard input. When that end closes, because the
sweep was stopped or killed, the worker kills what it had started and ends. Everything that works
for a run carries the run's folder in its environment; so what a worker that was killed itself left
behind is found and ended before the next attempt, whatever process group it put itself into. A
lock in the run's folder keeps two workers apart.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from tell_plugins.core import paths
from tell_plugins.core.files import cached_json, read_json, write_json
from tell_plugins.core.spec import parse_spec
from tell_plugins.experiments import store
from tell_plugins.experiments.records import AGAIN, RunFacts, TrainedHere, TrainerState
from tell_plugins.recipe.recipes import checkpoints

_TAIL = 30  # lines of a log that a failure keeps
_MARK = "TELL_SWEEP_RUN"  # in the environment of everything that works for a run


class Stopped(Exception):
    """The sweep went away."""


class StepFailed(Exception):
    """`train` or `eval` ended with an error."""

    def __init__(self, step: str, code: int, log: Path) -> None:
        self.step, self.code, self.log = step, code, log
        super().__init__(f"{step} ended with {exit_text(code)}")


def exit_text(code: int) -> str:
    """An exit code in words; a negative one is the signal that killed the process."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"signal {name}{hint}"


def end_workers_of(folder: Path) -> int:
    """Kill every process that works for the run in `folder`, until there is none; how many."""
    import psutil

    killed = 0
    while found := [p for p in psutil.process_iter() if _works_for(p, folder)]:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        killed += len(found)
        time.sleep(0.1)
    return killed


def _works_for(process: Any, folder: Path) -> bool:
    import psutil

    try:
        return process.environ().get(_MARK) == str(folder) and process.is_running()
    except (psutil.Error, OSError):  # it ended, is a zombie, or belongs to another user
        return False


class Steps:
    """Runs the commands of one run; they are killed when the sweep goes away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stopped = threading.Event()
        self._starting = threading.Lock()

    def watch(self, descriptor: int) -> None:
        """Wait in the background until the pipe closes, then stop everything."""
        threading.Thread(target=self._wait, args=(descriptor,), daemon=True).start()

    def _wait(self, descriptor: int) -> None:
        with contextlib.suppress(OSError):
            while os.read(descriptor, 1):
                pass
        with self._starting:
            self._stopped.set()
        end_workers_of(self._folder)

    def run(self, step: str, command: list[str], log: Path) -> None:
        """Run a command, its output appended to `log`. Raises StepFailed, or Stopped."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            output.write(f"\n$ {' '.join(command)}\n".encode())
            output.flush()
            with self._starting:
                if self._stopped.is_set():
                    raise Stopped
                process = subprocess.Popen(
                    command,
                    cwd=paths.PROJECT,
                    env={**os.environ, _MARK: str(self._folder)},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            code = process.wait()
        if self._stopped.is_set():
            raise Stopped
        if code:
            raise StepFailed(step, code, log)


def main(argv: list[str]) -> int:
    """Do the run; exit code 0 when done, 1 when a step failed, 3 when stopped."""
    folder, evaluation = Path(argv[0]), argv[1]
    steps = Steps(folder)
    steps.watch(sys.stdin.fileno())
    try:
        with FileLock(folder / ".lock"):
            end_workers_of(folder)
            _do(folder, evaluation, steps)
    except Stopped:
        end_workers_of(folder)
        return 3
    return 0


def _do(folder: Path, evaluation: str, steps: Steps) -> None:
    run = read_json(folder / store.RUN, RunFacts, AGAIN)
    asked = folder / store.EVAL_FOLDER / evaluation
    _step(folder, folder / store.TRAINED, lambda: _trained(run, folder, steps))
    _step(asked, asked / store.EVALUATED, lambda: evaluate(folder, asked, steps))


def _trained(run: dict[str, Any], folder: Path, steps: Steps) -> dict[str, Any]:
    if run["base"]:
        return {}
    return {"steps": 0} if run.get("rival") else train(folder, steps)


def _step(folder: Path, marker: Path, work: Callable[[], dict[str, Any]]) -> None:
    """Do a step unless its marker is there; write the marker, or what went wrong."""
    if marker.is_file():
        return
    try:
        facts = work()
    except StepFailed as failure:
        write_json(
            folder / store.FAILED,
            {
                "step": failure.step,
                "exit": exit_text(failure.code),
                "log": failure.log.name,
                "tail": tail(failure.log),
            },
        )
        raise SystemExit(1) from None
    write_json(marker, facts)


def tail(log: Path) -> list[str]:
    """The last lines of a log; of a progress bar only its last state."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines()]
    return [line for line in lines if line][-_TAIL:]


def train(folder: Path, steps: Steps) -> dict[str, Any]:
    """Train, from the last whole checkpoint of a killed attempt if there is one; what came out."""
    output = folder / store.TRAIN_FOLDER
    found = whole_checkpoints(output)
    seconds: float | None = None  # of a whole training only, so that rates can be told from it
    if not (found and _is_last(found[-1])):
        recipe = str(folder / store.RECIPE)
        command = [sys.executable, "-m", "tell_plugins", "train", "--verbose", recipe]
        if found:
            command += ["--resume_from_checkpoint", str(found[-1])]
        else:
            shutil.rmtree(output, ignore_errors=True)
        start = time.monotonic()
        steps.run("train", command, folder / store.TRAIN_LOG)
        seconds = None if found else round(time.monotonic() - start, 1)
        found = whole_checkpoints(output)
    if not found:
        raise StepFailed("train (it left no adapter)", 0, folder / store.TRAIN_LOG)
    return training_facts(found[-1], seconds)


def whole_checkpoints(output: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, without one that was being written when it died.

    The Trainer writes `trainer_state.json` after weights, optimizer and random state.
    """
    return [path for path in checkpoints(output) if _state(path) is not None]


def _state(checkpoint: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = cached_json(
        checkpoint / "trainer_state.json", TrainerState, foreign=True
    )
    return found


def _is_last(checkpoint: Path) -> bool:
    state = _state(checkpoint)
    return state is not None and state["global_step"] >= state["max_steps"]


def training_facts(checkpoint: Path, seconds: float | None) -> dict[str, Any]:
    """What the trainer itself says of a finished run, and whether the adapter changes anything."""
    import importlib.metadata

    from tell_plugins.evaluation.adapters import Adapter

    state = _state(checkpoint)
    assert state is not None
    return {
        "checkpoint": checkpoint.name,
        "steps": state["global_step"],
        "max_steps": state["max_steps"],
        "epochs": state.get("epoch"),
        "total_flos": state.get("total_flos"),
        "changes_nothing": Adapter(checkpoint.name, checkpoint).changes_nothing,
        "seconds": seconds,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("ms-swift", "transformers", "peft", "torch")
        },
    }


def evaluate(folder: Path, asked: Path, steps: Steps) -> dict[str, Any]:
    """Answer and measure; `eval` itself goes on where it was stopped."""
    run = read_json(folder / store.RUN, RunFacts, AGAIN)
    options = read_json(asked / store.OPTIONS, dict[str, Any], AGAIN)
    adapter, anchor = options.pop("rival", "none"), options.pop("anchor", None)
    flags: dict[str, Any] = {}
    if not run["base"] and adapter == "none":
        if anchor not in (None, parse_spec(run["spec"]).anchor):
            flags["anchor"] = anchor  # another than it trained with, on purpose
        checkpoint = read_json(folder / store.TRAINED, TrainedHere, AGAIN)["checkpoint"]
        adapter = str(folder / store.TRAIN_FOLDER / checkpoint)
    seeds = ",".join(map(str, options["seeds"]))
    flags |= {**options, "seeds": seeds, "adapter": adapter, "out": asked}
    command = [sys.executable, "-m", "tell_plugins", "eval", str(asked / store.RECIPE)]
    for flag, value in flags.items():
        if value is not None:
            command += [f"--{flag.replace('_', '-')}", str(value)]
    start = time.monotonic()
    steps.run("eval", command, asked / store.EVAL_LOG)
    return {"seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
