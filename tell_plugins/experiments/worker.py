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
from tell_plugins.core.spec import parse_spec
from tell_plugins.core.state_files import Shape, cached_json, read_json, write_json
from tell_plugins.experiments import store
from tell_plugins.recipe.recipes import checkpoints

_TAIL = 30  # lines of a log that a failure keeps
_MARK = "TELL_SWEEP_RUN"  # in the environment of everything that works for a run
_COMMANDS = threading.Lock()  # held while one starts, and for good when the sweep went away


class _TrainerState(Shape):
    """What the Trainer leaves of a checkpoint, `trainer_state.json`."""

    global_step: int
    max_steps: int
    epoch: float | None = None


class StepFailed(Exception):
    """`train` or `eval` ended with an error."""

    def __init__(self, step: str, code: int, log: Path) -> None:
        self.facts = {"step": step, "exit": exit_text(code), "log": log.name, "tail": tail(log)}


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


def main(argv: list[str]) -> int:
    """Do the run; exit code 0 when done, 1 when a step failed, 3 when stopped."""
    folder, asked = Path(argv[0]), Path(argv[0]) / store.EVAL_FOLDER / argv[1]
    threading.Thread(target=_end_with_the_sweep, args=(folder,), daemon=True).start()
    with FileLock(folder / ".lock"):
        end_workers_of(folder)
        _step(folder / store.TRAINED, lambda: train(folder))
        _step(asked / store.EVALUATED, lambda: evaluate(folder, asked))
    return 0


def _end_with_the_sweep(folder: Path) -> None:
    """Wait until the pipe closes, then end everything: no command starts or counts any more."""
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 1):
            pass
    with _COMMANDS:
        end_workers_of(folder)
        os._exit(3)


def call(step: str, folder: Path, command: list[str], log: Path) -> None:
    """Work for the run in `folder`, the output appended to `log`. Raises StepFailed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"\n$ {' '.join(command)}\n".encode())
        output.flush()
        with _COMMANDS:
            process = subprocess.Popen(
                command,
                cwd=paths.PROJECT,
                env={**os.environ, _MARK: str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        code = process.wait()
    with _COMMANDS:  # not where it was killed, since the sweep went away
        if code:
            raise StepFailed(step, code, log)


def _step(marker: Path, work: Callable[[], dict[str, Any]]) -> None:
    """Do a step unless its marker is there; write the marker, or what went wrong."""
    if marker.is_file():
        return
    try:
        facts = work()
    except StepFailed as failed:
        write_json(marker.with_name(store.FAILED), failed.facts)
        raise SystemExit(1) from None
    write_json(marker, facts)


def tail(log: Path) -> list[str]:
    """The last lines of a log; of a progress bar only its last state."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines()]
    return [line for line in lines if line][-_TAIL:]


def train(folder: Path) -> dict[str, Any]:
    """Train, from the last whole checkpoint of a killed attempt if there is one; what came out."""
    run = store.facts_in(folder, store.RUN)
    if run["base"] or run.get("rival"):
        return {} if run["base"] else {"steps": 0}
    output, log = folder / store.TRAIN_FOLDER, folder / "train.log"
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
        call("train", folder, command, log)
        seconds = None if found else round(time.monotonic() - start, 1)
        found = whole_checkpoints(output)
    if not found:
        raise StepFailed("train (it left no adapter)", 0, log)
    return training_facts(found[-1], seconds)


def whole_checkpoints(output: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, without one that was being written when it died.

    The Trainer writes `trainer_state.json` after weights, optimizer and random state.
    """
    return [path for path in checkpoints(output) if _state(path)]


def _state(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / "trainer_state.json"
    return cached_json(file, _TrainerState, foreign=True) or {}


def _is_last(checkpoint: Path) -> bool:
    state = _state(checkpoint)
    return bool(state["global_step"] >= state["max_steps"])


def training_facts(checkpoint: Path, seconds: float | None) -> dict[str, Any]:
    """What the trainer itself says of a finished run, and whether the adapter changes anything."""
    import importlib.metadata

    from tell_plugins.evaluation.adapters import Adapter

    state = _state(checkpoint)
    return {
        "checkpoint": checkpoint.name,
        "steps": state["global_step"],
        **{key: state.get(key) for key in ("max_steps", "epoch", "total_flos")},
        "changes_nothing": Adapter(checkpoint.name, checkpoint).changes_nothing,
        "seconds": seconds,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("ms-swift", "transformers", "peft", "torch")
        },
    }


def evaluate(folder: Path, asked: Path) -> dict[str, Any]:
    """Answer and measure; `eval` itself goes on where it was stopped."""
    run = store.facts_in(folder, store.RUN)
    options = read_json(asked / store.OPTIONS, dict[str, Any], store.AGAIN)
    adapter, anchor = options.pop("rival", "none"), options.pop("anchor", None)
    flags = {**options, "seeds": ",".join(map(str, options["seeds"])), "out": asked}
    if not run["base"] and adapter == "none":
        if anchor not in (None, parse_spec(run["spec"]).anchor):
            flags["anchor"] = anchor  # another than it trained with, on purpose
        checkpoint = store.facts_in(folder, store.TRAINED)["checkpoint"]
        adapter = folder / store.TRAIN_FOLDER / str(checkpoint)
    command = [sys.executable, "-m", "tell_plugins", "eval", str(asked / store.RECIPE)]
    for flag, value in {**flags, "adapter": adapter}.items():
        if value is not None:
            command += [f"--{flag.replace('_', '-')}", str(value)]
    start = time.monotonic()
    call("eval", folder, command, asked / "eval.log")
    return {"seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
