"""Training in a subprocess with one progress bar; ms-swift's own output goes to a log file."""

from __future__ import annotations

import re
import subprocess

from tqdm import tqdm

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.train import command, environment

LOG = "train.log"
_LOSS = re.compile(r"'loss': '?([\d.]+)")
_TAIL = 15  # lines of the log that a failure shows


def train_quietly(recipe: Recipe, *, label: str, threads: int | None = None, line: int = 0) -> None:
    """Run `swift sft` in the project's root, showing steps and loss.

    `threads`: CPU threads it may use (default: all). `line`: where its bar is, from the top, when
    several train at once. Raises MachineError with the end of the log when it fails.
    """
    recipe.output_dir.mkdir(parents=True, exist_ok=True)
    log = recipe.output_dir / LOG
    values = {**environment(recipe), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    if threads is not None:
        values["OMP_NUM_THREADS"] = str(threads)
    bar = tqdm(desc=f"  {label}", unit="step", dynamic_ncols=True, position=line)
    with log.open("wb") as sink, bar:
        process = subprocess.Popen(
            command(recipe),
            cwd=paths.PROJECT,
            env=values,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        try:
            for printed in process.stdout:
                sink.write(printed)
                _follow(printed.decode(errors="replace"), bar)
        except BaseException:
            process.terminate()
            raise
        finally:
            process.wait()
    if process.returncode != 0:
        tail = log.read_text(errors="replace").splitlines()[-_TAIL:]
        raise MachineError(
            f"swift sft failed with exit code {process.returncode}; the end of "
            f"{paths.shown(log)}:\n" + "\n".join(tail),
            remedy="see the log; the same command goes on with what is not done",
        )


def _follow(line: str, bar: tqdm) -> None:
    found = re.search(r"'global_step/max_steps': '(\d+)/(\d+)'", line)
    if found is None:
        return
    bar.total = int(found[2])
    bar.update(int(found[1]) - bar.n)
    loss = _LOSS.search(line)
    if loss:
        bar.set_postfix_str(f"loss {float(loss[1]):.2f}")
