"""`./run.sh sweep`: a grid of runs, each the real `swift sft` and `eval`, finished ones skipped."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, above_zero, raise_all
from tell_plugins.core.state_files import only_one, write_json
from tell_plugins.evaluation import options
from tell_plugins.experiments.controls import controls
from tell_plugins.experiments.planning import Asked, Planned, SweepPlan, make_plan
from tell_plugins.experiments.results import Study, index_file, study_of, tell_left_out
from tell_plugins.experiments.runner import (
    add_jobs,
    forget_failures,
    minutes,
    run_here,
    run_on_ray,
    slots,
)
from tell_plugins.experiments.store import (
    EVALUATED,
    RUN,
    TRAINED,
    Job,
    Store,
    facts_in,
    other_answers,
)
from tell_plugins.experiments.sweep import Sweep, load_sweep
from tell_plugins.recipe.estimate import reported_flops
from tell_plugins.recipe.recipes import parse_flags
from tell_plugins.recipe.shapes import shape_of
from tell_plugins.recipe.tables import table

DEFAULT_ROOT = Path("output/sweeps")  # one folder, so that sweeps share their runs
# options that only shape the control grid; a sweep file says them itself
_CHANGES = ("task", "general", "from")
_ASKED = ("split", "rows", "decoding", "general_rows", "retention_rows", "batch_size")
_GRID_OPTIONS = (*_CHANGES, "seeds", *_ASKED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_flags=True)
    parser.add_argument("file", help="a sweep file, see recipes/sweeps/; with --controls a recipe")
    parser.add_argument("--controls", action="store_true", help="the control grid of the recipe")
    add_jobs(parser)
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="runs as Ray tasks: auto, local, host:port"
    )
    parser.add_argument("--dry-run", action="store_true", help="only list what would be done")
    parser.add_argument("--retry-failed", action="store_true", help="try failed runs again")
    parser.add_argument("--out", help="folder of the runs (default: output/sweeps, shared)")
    parser.add_argument(
        "--rate", type=above_zero, metavar="TOKENS_PER_SECOND", help="to estimate the time with"
    )
    grid = parser.add_argument_group("with --controls")
    grid.add_argument("--task", help="amount of task data, e.g. 15rows (default: the recipe's)")
    grid.add_argument("--general", help="amount of general data (default: the recipe's)")
    grid.add_argument("--from", help="general cards (default: the recipe's)")
    grid.add_argument("--seeds", type=options.seeds_of, help="e.g. 42,43 (default: 42)")
    options.add_some(grid, _ASKED)


def run(args: argparse.Namespace) -> int:
    sweep, command = _sweep(args), command_of(args)
    store = Store(paths.user_target(args.out) if args.out else DEFAULT_ROOT)
    if args.dry_run:
        with tempfile.TemporaryDirectory() as cards:
            plan = make_plan(sweep, Path(cards))
            if plan.entries:
                print_dry_run(plan, store, measured_rates(store, args.rate))
            _check(plan, store, command)
        return 0
    again = args.retry_failed
    return do(sweep, store, command, jobs=args.jobs, ray=args.ray, retry_failed=again)


def _sweep(args: argparse.Namespace) -> Sweep:
    flags, given = parse_flags(args.flags), options.given(args, _GRID_OPTIONS)
    if args.controls:
        return controls(
            args.file,
            changes={key: given[key] for key in _CHANGES if key in given},
            seeds=given.get("seeds", [42]),
            evaluate={key: given[key] for key in _ASKED if key in given},
            flags=flags,
        )
    if given:
        raise UserError(
            f"--{next(iter(given)).replace('_', '-')} goes with --controls",
            where="./run.sh sweep",
            remedy="a sweep file says it itself; write a copy of the file",
        )
    return load_sweep(args.file, flags)


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
        jobs: runs at once (default: one a GPU; on a CPU one a core, as memory allows).
        ray: address of a Ray cluster that does them.
        retry_failed: whether runs that failed earlier are tried again.
    """
    with only_one(store.root, "sweep"):
        plan = make_plan(sweep, store.cards)
        study = _check(plan, store, command)
        everything = [store.prepare(run) for run in plan.everything]
        write_json(index_file(store.root, study), study.model_dump(mode="json"))
        if retry_failed:
            forget_failures(everything)
        left = [job for job in everything if not job.done and not job.failure]
        needs_gpu = any(job.needs_gpu for job in left)
        states = Counter(job.state for job in everything)
        done, failed = states["done"], states["failed"]
        print(f"{sweep.title}: {len(everything)} runs, {done} done, {len(left)} to do", end="")
        print(f", {failed} failed earlier (--retry-failed tries them again)" if failed else "")
        print(f"folder: {paths.shown(store.root)}", flush=True)
        if left and ray:
            run_on_ray(left, ray, at_once=jobs, needs_gpu=needs_gpu)
        elif left:
            models = {str(run.recipe.get("model")) for run in plan.everything}
            run_here(left, slots(jobs, needs_gpu=needs_gpu, models=models))
        return _close(store, everything)


def _check(plan: SweepPlan, store: Store, command: str) -> Study:
    """What is kept of the sweep. Raises UserError for what of plan or folder stands in the way."""
    raise_all(plan.problems)
    raise_all(list(other_answers(plan, store)))
    study = study_of(plan, store, command)
    tell_left_out(store.root, study)
    return study


def command_of(args: argparse.Namespace) -> str:
    """The command that makes this sweep again, without what only this machine knows."""
    named = ["--controls"] if args.controls else []
    named.append(paths.shown(paths.user_path(args.file)))
    for key, value in options.given(args, _GRID_OPTIONS).items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        named += [f"--{key.replace('_', '-')}", text]
    return shlex.join(["./run.sh", "sweep", *named, *args.flags])


def _close(store: Store, everything: list[Job]) -> int:
    """Say how the sweep ended; 1 when a run failed."""
    failed = [job for job in everything if not job.done]
    for job in failed:
        failure = job.failure
        reason = f"{failure['step']}: {failure['exit']}" if failure else "not finished"
        print(f"failed: {job.label} ({reason}), {paths.shown(job.folder)}", file=sys.stderr)
    if not failed:
        print(f"all {len(everything)} runs are done")
    print(f"next: ./run.sh report {paths.shown(store.root)}")
    return 1 if failed else 0


class Rates(NamedTuple):
    """How fast this sweep's runs are: trained tokens a second (NaN: not known), and seconds that
    one evaluation takes (0: not known). `source` says where the rates come from."""

    tokens: float
    evaluation: float
    source: str

    def seconds_left(self, job: Job, tokens: float) -> float:
        """What is left to do of a run that trains `tokens`; NaN where it is not known."""
        if job.done:
            return 0.0
        return (0.0 if job.trained else tokens / self.tokens) + self.evaluation


def measured_rates(store: Store, given: float | None) -> Rates:
    """`given` tokens a second, else what the finished runs of the folder took."""
    asked = [facts_in(folder, EVALUATED).get("seconds") for folder in store.runs.glob("*/eval/*")]
    known = [seconds for seconds in asked if seconds]
    evaluation = sum(known) / len(known) if known else 0.0
    if given:
        return Rates(given, evaluation, "--rate")
    folders = sorted(store.runs.glob("*"))
    runs = [(facts_in(f, RUN).get("trained_tokens"), facts_in(f, TRAINED)) for f in folders]
    whole = [(n, took["seconds"]) for n, took in runs if n and took.get("seconds")]
    tokens, seconds = (sum(part) for part in zip(*whole, strict=True)) if whole else (math.nan, 1)
    return Rates(tokens / seconds, evaluation, "the finished runs here")


def print_dry_run(plan: SweepPlan, store: Store, rates: Rates) -> None:
    """Print every run with its steps, tokens, FLOPs and time, and what is left to do in all."""
    print(f"{plan.sweep.title}\nbase recipe {plan.sweep.base}, folder {store.root}\n")
    rows: list[list[object]] = []
    left = np.zeros((0, 3))  # tokens, FLOPs and seconds of what is to be done
    for run in plan.everything:
        job = store.job(run)
        tokens = math.nan if run.trained_tokens is None else float(run.trained_tokens)
        costs = [tokens, _flops(run, tokens), rates.seconds_left(job, tokens)]
        left = left if job.done else np.vstack([left, costs])
        note, mixed = (_note(run, plan), run.facts.rows) if isinstance(run, Planned) else ("", 0)
        exposure = "" if run.exposure is None else f"{run.exposure:.1f}"
        time = "?" if math.isnan(costs[2]) else minutes(costs[2]) if costs[2] else ""
        state = job.state + (f" ({note})" if note else "")
        numbers = [_number(mixed), _number(run.steps), exposure, *map(_number, costs[:2])]
        rows.append([run.label, *numbers, time, state])
    header = ["run", "rows", "steps", "exposure", "tokens", "FLOPs", "time", "state"]
    print(table(header, rows, indent=""))
    print("exposure: how much learning rate the task rows meet, in rows at the full rate")
    missing = f", others cannot be planned ({len(plan.problems)})" if plan.problems else ""
    tokens, flops, seconds = left.sum(axis=0)
    print(f"\n{len(rows)} runs, {len(left)} left{missing}", end="")
    print("" if math.isnan(tokens) else f": {tokens:,.0f} tokens to train", end="")
    print("" if math.isnan(flops) else f", {flops:.1e} FLOPs", end="")
    print(f"\ntime: {_time(seconds, rates)}")


def _flops(run: Asked, tokens: float) -> float:
    """What the Trainer will report; NaN where tokens or the model's shape are not known."""
    shape = shape_of(str(run.recipe.get("model")))
    if tokens == 0:
        return 0.0
    return math.nan if shape is None else reported_flops(shape, tokens)


def _number(value: float) -> str:
    """A count as it is read; nothing for 0, and what is not known as such."""
    if math.isnan(value):
        return "?"
    return "" if value == 0 else f"{value:,.0f}" if value < 1e8 else f"{value:.1e}"


def _time(seconds: float, rates: Rates) -> str:
    if math.isnan(seconds + rates.tokens):
        return "unknown until a run is finished here (or give --rate TOKENS_PER_SECOND)"
    unmeasured = "; answering and scoring come on top, not measured yet"
    return (
        f"about {minutes(seconds)} one run after the other, at {rates.tokens:,.0f} tokens a "
        f"second ({rates.source}){'' if rates.evaluation else unmeasured}"
    )


def _note(run: Planned, plan: SweepPlan) -> str:
    notes = ["no-op: every step has learning rate 0"] if run.is_no_op else []
    if run.exposure == 0 and not run.is_no_op:
        notes.append("no task row meets a learning rate above 0")
    if run.steps and run.steps * run.plan.training.rows_per_step < run.facts.rows:
        notes.append(f"stops after {run.steps} steps")
    same = [e for e in plan.entries if (e.id, e.evaluation) == (run.id, run.evaluation)]
    twins = dict.fromkeys(e.cell.method for e in same if e.cell.key != run.cell.key)
    if twins:
        notes.append(f"the same run as {', '.join(twins)}")
    if run.facts.overlapping and run.spec.overlap == "keep":
        notes.append(f"{run.facts.overlapping} general rows of the card are test queries")
    return "; ".join(notes)
