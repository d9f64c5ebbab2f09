"""One job of a sweep: train, then answer; go on where it stopped."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.state_files import Shape, cached_json, write_json
from tell_plugins.evaluation.adapters import Adapter
from tell_plugins.experiments.guard import MARK, end_work_in
from tell_plugins.experiments.store import (
    EVALUATED,
    FAILED,
    RECIPE,
    TRAIN_FOLDER,
    TRAINED,
    Run,
    facts_in,
)
from tell_plugins.recipe.recipes import checkpoints

_TAIL = 30  # lines of a log that a failure keeps
_VERSIONS = ("ms-swift", "transformers", "peft", "torch")


class _TrainerState(Shape):
    """What the Trainer leaves of a checkpoint, `trainer_state.json`."""

    global_step: int
    max_steps: int


class StepFailed(Exception):
    """`train` or `eval` ended with an error."""

    def __init__(self, step: str, code: int, log: Path) -> None:
        self.facts = {"step": step, "exit": exit_text(code), "log": log.name, "tail": tail(log)}


def exit_text(code: int) -> str:
    """An exit code in words; a negative one is the signal that killed the process."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"signal {name}{' (out of memory?)' if -code == signal.SIGKILL else ''}"


def tail(log: Path) -> list[str]:
    """The last lines of a log; of a progress bar only its last state."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines()]
    return [line for line in lines if line][-_TAIL:]


@dataclass(frozen=True)
class Worker:
    """What does jobs: in commands with this environment, which end when `stop` is set."""

    environment: Mapping[str, str]
    stop: Event

    def do(self, run: Run) -> None:
        """Do what is not done of a run; what went wrong is written beside it."""
        for work, marker in (
            (self.train, run.folder / TRAINED),
            (self.evaluate, run.eval_folder / EVALUATED),
        ):
            try:
                if not marker.is_file():
                    write_json(marker, work(run))
            except StepFailed as failed:
                if not self.stop.is_set():  # else it was ended, and did not fail
                    write_json(marker.with_name(FAILED), failed.facts)
                return

    def call(self, step: str, job: Run, command: list[str], log: Path) -> None:
        """Work for a job, the output appended to `log`. Raises StepFailed."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            output.write(f"\n$ {' '.join(command)}\n".encode())
            output.flush()
            process = subprocess.Popen(
                command,
                cwd=paths.PROJECT,
                env={**self.environment, MARK: str(job.folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the sweep alone
            )
        while process.poll() is None:
            if self.stop.is_set():
                end_work_in(job.folder)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        if process.returncode:
            raise StepFailed(step, process.returncode, log)

    def train(self, run: Run) -> dict[str, Any]:
        """Train, from the last whole checkpoint of a killed attempt if any; what came out."""
        if not run.steps:
            return {"steps": 0}
        output, log = run.folder / TRAIN_FOLDER, run.folder / "train.log"
        found, seconds = whole_checkpoints(output), None
        if not (found and _is_last(found[-1])):
            command = [sys.executable, "-m", "tell_plugins", "train", "--verbose"]
            command.append(str(run.folder / RECIPE))
            if found:
                command += ["--resume_from_checkpoint", str(found[-1])]
            else:
                shutil.rmtree(output, ignore_errors=True)
            start = time.monotonic()
            self.call("train", run, command, log)
            if not found:  # of a whole training only, so that rates can be told from it
                seconds = round(time.monotonic() - start, 1)
            found = whole_checkpoints(output)
        if not found:
            raise StepFailed("train (it left no adapter)", 0, log)
        return _trained(found[-1]) | {"seconds": seconds}

    def evaluate(self, run: Run) -> dict[str, Any]:
        """Answer and measure; `eval` itself goes on where it was stopped."""
        asked, rival, folder = run.asked, run.cell.rival, run.eval_folder
        flags = {**asked.options, "seeds": ",".join(map(str, asked.options["seeds"]))}
        flags |= {"out": folder, "adapter": rival or "none"}
        if rival:  # no language model, so it is asked nothing general
            flags |= {"general_rows": 0, "retention_rows": None}
        if run.steps:
            if asked.anchor != run.spec.anchor:
                flags["anchor"] = asked.anchor  # another than it trained with, on purpose
            checkpoint = facts_in(run.folder, TRAINED)["checkpoint"]
            flags["adapter"] = run.folder / TRAIN_FOLDER / str(checkpoint)
        command = [sys.executable, "-m", "tell_plugins", "eval", str(folder / RECIPE)]
        for flag, value in flags.items():
            if value is not None:
                command += [f"--{flag.replace('_', '-')}", str(value)]
        start = time.monotonic()
        self.call("eval", run, command, folder / "eval.log")
        return {"seconds": round(time.monotonic() - start, 1), "content": asked.content}


def whole_checkpoints(output: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, without one that was being written when it died.

    The Trainer writes `trainer_state.json` after weights, optimizer and random state.
    """
    return [path for path in checkpoints(output) if _state(path)]


def _state(checkpoint: Path) -> dict[str, Any]:
    return cached_json(checkpoint / "trainer_state.json", _TrainerState, foreign=True) or {}


def _is_last(checkpoint: Path) -> bool:
    state = _state(checkpoint)
    return bool(state["global_step"] >= state["max_steps"])


def _trained(checkpoint: Path) -> dict[str, Any]:
    """What a finished run was, and whether its adapter changes anything."""
    return {
        "checkpoint": checkpoint.name,
        "steps": _state(checkpoint)["global_step"],
        "changes_nothing": Adapter(checkpoint.name, checkpoint).changes_nothing,
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
    }
