"""`./run.sh sweep`: a grid of runs, each the real `swift sft` and `eval`, finished ones skipped."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, raise_all
from tell_plugins.core.files import read_json
from tell_plugins.core.locks import only_one
from tell_plugins.experiments.controls import controls
from tell_plugins.experiments.dry_run import default_root, measured_rates, print_dry_run
from tell_plugins.experiments.earlier import other_answers, refuse_other_sweep
from tell_plugins.experiments.planning import SweepPlan, make_plan
from tell_plugins.experiments.records import AGAIN, Trained
from tell_plugins.experiments.store import TRAINED, Job, Store
from tell_plugins.experiments.sweep import Sweep, load_sweep
from tell_plugins.recipe.recipes import parse_flags

# options that only shape the control grid; a sweep file says them itself
_ASKED = ("split", "rows", "decoding", "general_rows", "retention_rows", "batch_size")
_GRID_OPTIONS = ("task", "general", "source", "seeds", *_ASKED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_flags=True)
    parser.add_argument("file", nargs="?", help="a sweep file, see recipes/sweeps/")
    parser.add_argument("--controls", metavar="RECIPE", help="the control grid of this recipe")
    parser.add_argument("--jobs", type=int, help="runs at once (default: one a GPU, else 1)")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="runs as Ray tasks: auto, local, host:port"
    )
    parser.add_argument("--dry-run", action="store_true", help="only list what would be done")
    parser.add_argument("--retry-failed", action="store_true", help="try failed runs again")
    parser.add_argument("--out", help="folder of the runs (default: output/sweeps, shared)")
    parser.add_argument(
        "--rate", type=float, metavar="TOKENS_PER_SECOND", help="to estimate the time with"
    )
    grid = parser.add_argument_group("with --controls")
    grid.add_argument("--task", help="amount of task data, e.g. 15rows (default: the recipe's)")
    grid.add_argument("--general", help="amount of general data (default: the recipe's)")
    grid.add_argument("--from", dest="source", help="general cards (default: the recipe's)")
    grid.add_argument("--seeds", help="e.g. 42,43 (default: 42)")
    grid.add_argument("--split", help="split that is answered (default: test)")
    grid.add_argument("--rows", type=int, help="a seeded draw of this many of its rows")
    grid.add_argument("--decoding", help="greedy (default) or paper")
    grid.add_argument("--general-rows", type=int, help="held-out general rows (default: 40)")
    grid.add_argument("--retention-rows", type=int, help="of the project's own (default: all)")
    grid.add_argument("--batch-size", type=int, help="prompts answered at once (default: 16)")


def run(args: argparse.Namespace) -> int:
    if args.jobs is not None and args.jobs < 1:
        raise UserError(
            "a count below 1",
            where="--jobs",
            allowed="1 and more",
            remedy="leave it out for one run a GPU, or one at a time",
        )
    sweep = _sweep(args)
    store = Store(paths.user_target(args.out) if args.out else default_root())
    if args.dry_run:
        with tempfile.TemporaryDirectory() as cards:
            plan = make_plan(sweep, Path(cards))
            if plan.entries and not plan.unknown_keys:
                print_dry_run(plan, store, measured_rates(store, args.rate))
            _check(plan, store, command_of(args))
        return 0
    return do(
        sweep,
        store,
        command_of(args),
        jobs=args.jobs,
        ray=args.ray,
        retry_failed=args.retry_failed,
    )


def _sweep(args: argparse.Namespace) -> Sweep:
    if (args.file is None) == (args.controls is None):
        raise UserError(
            "name a sweep file or --controls RECIPE" if args.file is None else "both are given",
            where="./run.sh sweep",
            allowed="one of the two",
            remedy="./run.sh sweep recipes/sweeps/NAME.yaml, or ./run.sh sweep --controls RECIPE",
        )
    flags = parse_flags(args.flags)
    if args.controls is not None:
        return _controls(args, flags)
    given = [name for name in _GRID_OPTIONS if getattr(args, name) is not None]
    if given:
        raise UserError(
            f"--{given[0].replace('_', '-').replace('source', 'from')} goes with --controls",
            where="./run.sh sweep",
            remedy="a sweep file says it itself; write a copy of the file",
        )
    return load_sweep(args.file, flags)


def _controls(args: argparse.Namespace, flags: Mapping[str, Any]) -> Sweep:
    changes = {"task": args.task, "general": args.general, "from": args.source}
    evaluate = {name: getattr(args, name) for name in _ASKED}
    return controls(
        args.controls,
        changes={key: value for key, value in changes.items() if value is not None},
        seeds=_seeds(args.seeds or "42"),
        evaluate={key: value for key, value in evaluate.items() if value is not None},
        flags=flags,
    )


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"bad seeds '{text}'", where="--seeds", allowed="42 or 42,43", remedy="integers"
        ) from None


def do(
    sweep: Sweep,
    store: Store,
    command: str,
    *,
    jobs: int | None = None,
    ray: str | None = None,
    retry_failed: bool = False,
) -> int:
    """Do what is not done of a sweep; 0 when all runs are there.

    Args:
        command: what makes the sweep again, kept with it.
        jobs: runs at once (default: one a GPU, else one).
        ray: address of a Ray cluster that does them.
        retry_failed: whether runs that failed earlier are tried again.
    """
    from tell_plugins.experiments.machine import slots
    from tell_plugins.experiments.ray_runner import run_on_ray
    from tell_plugins.experiments.runner import forget_failures, run_here

    with only_one(store.root, "sweep"):
        plan = make_plan(sweep, store.cards)
        index = _check(plan, store, command)
        everything = [store.prepare(base) for base in plan.bases]
        everything += [store.prepare(run) for run in plan.runs]
        store.write_index(index)
        if retry_failed:
            forget_failures(everything)
        left = [job for job in everything if not job.done and not job.failure]
        needs_gpu = any(job.needs_gpu for job in left)
        _announce(sweep, store, everything, left)
        if left and ray:
            run_on_ray(left, ray, store.cards, at_once=jobs, needs_gpu=needs_gpu)
        elif left:
            run_here(left, slots(jobs, needs_gpu=needs_gpu), store.cards)
        return _close(plan, store, everything)


def _check(plan: SweepPlan, store: Store, command: str) -> dict[str, Any]:
    """The sweep's index. Raises UserError for whatever of plan or folder stands in the way."""
    raise_all(plan.problems)
    index = store.index(plan, command)
    refuse_other_sweep(store.root, index, "--out DIR, or a copy of the sweep file of another name")
    raise_all(list(other_answers(plan, store)))
    return index


def command_of(args: argparse.Namespace) -> str:
    """The command that makes this sweep again, without what only this machine knows."""
    parts = ["./run.sh", "sweep"]
    if args.file is not None:
        parts.append(paths.shown(paths.user_path(args.file)))
    else:
        parts += ["--controls", paths.shown(paths.user_path(args.controls))]
    for name in _GRID_OPTIONS:
        value = getattr(args, name)
        if value is not None:
            flag = name.replace("_", "-").replace("source", "from")
            parts += [f"--{flag}", str(value)]
    return shlex.join([*parts, *args.flags])


def _announce(sweep: Sweep, store: Store, everything: list[Job], jobs: list[Job]) -> None:
    done = sum(job.done for job in everything)
    failed = sum(job.failure is not None for job in everything)
    print(f"{sweep.title}: {len(everything)} runs, {done} done, {len(jobs)} to do", end="")
    print(f", {failed} failed earlier (--retry-failed tries them again)" if failed else "")
    print(f"folder: {paths.shown(store.root)}", flush=True)


def _close(plan: SweepPlan, store: Store, everything: list[Job]) -> int:
    """Say how the sweep ended; 1 when a run failed or took other steps than it must."""
    failed = [job for job in everything if not job.done]
    for job in failed:
        failure = job.failure
        reason = f"{failure['step']}: {failure['exit']}" if failure else "not finished"
        print(f"failed: {job.label} ({reason}), {paths.shown(job.folder)}", file=sys.stderr)
    wrong = wrong_steps(plan, store)
    for line in wrong:
        print(line, file=sys.stderr)
    if not failed and not wrong:
        print(f"all {len(everything)} runs are done")
    print(f"next: ./run.sh report {paths.shown(store.root)}")
    return 1 if failed or wrong else 0


def wrong_steps(plan: SweepPlan, store: Store) -> list[str]:
    """Runs whose trainer took other steps than the run they must equal; empty when all fit."""
    steps = {}
    for entry in plan.entries:
        facts = read_json(store.folder_of(entry) / TRAINED, Trained, AGAIN)
        if facts:
            steps[entry.id] = (entry.cell.label, facts["steps"])
    found = []
    for entry in plan.entries:
        if entry.equal_steps in steps and entry.id in steps:
            (label, mine), (other, theirs) = steps[entry.id], steps[entry.equal_steps]
            if mine != theirs:
                found.append(f"not equal steps: {label} took {mine}, {other} {theirs}")
    return found
