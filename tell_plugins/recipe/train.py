"""`./run.sh train RECIPE [flags]`: `swift sft` with a recipe, on any supported ms-swift.

ms-swift 4.0 lets the YAML win over flags and later releases the other way round. So a recipe goes
to it as flags, with the command line's applied: they win everywhere.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from tell_plugins.bridge import swift_cli
from tell_plugins.bridge.embedded_model import is_embedded, prepare_if_embedded
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, raise_all
from tell_plugins.recipe.check import inspect
from tell_plugins.recipe.checked import Checked
from tell_plugins.recipe.models import model_folder, need_model
from tell_plugins.recipe.recipes import Recipe, checkpoints, load_recipe
from tell_plugins.recipe.swift_keys import installed_version, project_environment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file")
    parser.add_argument("--force", action="store_true", help="train although `check` finds errors")
    parser.add_argument("--verbose", action="store_true", help="show ms-swift's own log, too")
    parser.epilog = (
        "`check` looks at the run first, and its errors stop it. Further --key value pairs are "
        "ms-swift's and win over the recipe, for example --learning_rate 2e-4 or --dataset "
        "'tell/halu_cot_json:task=15rows'. NPROC_PER_NODE and the like are read from the "
        "environment, as by `swift sft`."
    )
    parser.set_defaults(takes_flags=True)


def run(args: argparse.Namespace) -> int:
    """Train, unless `check` finds errors and `--force` is not given."""
    recipe = load_recipe(args.recipe, args.flags)
    installed_version()
    # where `eval` will look; by itself ms-swift names the folder after the model
    recipe = recipe.with_values(output_dir=str(recipe.output_dir))
    prepare_if_embedded(recipe.text("model"))  # before `check`, which counts with its tokenizer
    checked = inspect(recipe)
    _tell(checked, args.force)
    if not args.force:
        _need_gpu(recipe)
    recipe = _with_model(recipe)
    before, folder = set(checkpoints(recipe.output_dir)), paths.shown(recipe.output_dir)
    if not args.verbose:  # ms-swift's own log has 500 lines before the first step
        print(f"training {recipe.dataset_text} on {recipe.get('model')}")
        if checked.plan is not None and checked.entries is not None:
            task, general = checked.entries
            print(f"  {task:,} task rows, {general:,} general rows, {checked.plan.steps:,} steps")
        print(f"  into {folder}   (--verbose: ms-swift's own log, too)", flush=True)
    code = train(recipe, verbose=args.verbose)
    new = [path for path in checkpoints(recipe.output_dir) if path not in before]
    if code == 0 and new:
        adapter, file = (shlex.quote(paths.shown(path)) for path in (new[-1], recipe.path))
        print(f"\nadapter  {adapter}\nscore it with  ./run.sh eval {file} --adapter {adapter}")
    elif code == 0:
        print(f"\nno adapter was saved in {folder}")
    return code


def _tell(checked: Checked, force: bool) -> None:
    """Errors that `check` finds stop the run: ms-swift would find the same, minutes later."""
    if checked.errors and not force:
        remedy = "mend the above, or `--force` trains all the same"
        end = UserError("nothing was trained", where="train", remedy=remedy)
        raise_all([*checked.errors, end])
    for finding in checked.findings:
        print(f"{finding.severity}: {finding}", file=sys.stderr)


_SEES_GPU = """
import torch
raise SystemExit(not getattr(torch, "accelerator", torch.cuda).is_available())
"""


def _need_gpu(recipe: Recipe) -> None:
    """UserError for 16-bit training without a GPU: transformers wants `use_cpu` said for it."""
    if recipe.flag("use_cpu") or recipe.text("torch_dtype") == "float32":
        return
    if subprocess.run([sys.executable, "-c", _SEES_GPU], check=False).returncode:
        raise UserError(
            "PyTorch sees no GPU on this machine",
            where=f"train, {recipe.where('use_cpu')}",
            allowed="a GPU, or 'use_cpu: true'",
            remedy="--use_cpu true trains on the CPU (small models); a driver or a build of "
            "PyTorch may be missing",
        )


def _with_model(recipe: Recipe) -> Recipe:
    """The recipe with its model at hand. MachineError when it cannot be had."""
    model = recipe.text("model")
    folder = model_folder(model)
    if is_embedded(model):
        return recipe
    if folder is None:
        need_model(model, recipe.flag("use_hf"))
        return recipe
    found = {"model": str(folder)} if not (paths.PROJECT / model).is_dir() else {}
    if not recipe.given("check_model"):
        found["check_model"] = "false"  # ms-swift would ask a hub about a folder
    return recipe.with_values(**found)


def sft_command(recipe: Recipe) -> list[str]:
    """The `swift sft` of this environment with the recipe as flags."""
    return swift_cli.command("sft", *recipe.argv())


def environment(recipe: Recipe) -> dict[str, str]:
    """The environment of a training.

    On a CPU that other processes use too, OpenMP's waiting threads would spin and take the cores
    from the working ones: on two busy cores a step took 195 s instead of 16 s.
    """
    values = {**project_environment(), **recipe.environment}
    if recipe.flag("use_cpu"):
        values.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return values


def train(recipe: Recipe, *, verbose: bool = True) -> int:
    """Run `swift sft` in the project's root and return its exit code (128 + n for signal n).

    Raises KeyboardInterrupt when it was ended by Ctrl-C.
    """
    quiet = {} if verbose else {"LOG_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        sft_command(recipe),
        cwd=paths.PROJECT,
        env={**quiet, **environment(recipe)},
        start_new_session=True,  # ms-swift starts processes of its own: signals go to all of them
    )
    with _forwarding(process) as received:
        code = process.wait()
    if signal.SIGINT in received:
        print(file=sys.stderr)  # ends the line of the progress bar
        raise KeyboardInterrupt
    return 128 - code if code < 0 else code


@contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Pass signals on to the training and all of its processes; gives those that came.

    Ctrl-C ends them as SIGTERM does: each of them would have a traceback for it.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.killpg(process.pid, signal.SIGTERM if number == signal.SIGINT else number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
