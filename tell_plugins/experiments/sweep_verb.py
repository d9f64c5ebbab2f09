"""`./run.sh sweep`: a grid of runs, each the real `swift sft` and `eval`, finished ones skipped."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, above_zero, raise_all
from tell_plugins.core.shown import table
from tell_plugins.core.state_files import only_one, write_json
from tell_plugins.evaluation import options
from tell_plugins.experiments.planning import SweepPlan, make_plan
from tell_plugins.experiments.results import Study, index_file, study_of, tell_left_out
from tell_plugins.experiments.runner import (
    add_jobs,
    forget_failures,
    minutes,
    run_here,
    run_on_ray,
    slots,
)
from tell_plugins.experiments.store import Pace, Run, other_answers, pace
from tell_plugins.experiments.sweep import Sweep, controls, load_sweep
from tell_plugins.recipe.models import reported_flops, shape_of
from tell_plugins.recipe.recipes import parse_flags

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
    root = paths.user_target(args.out) if args.out else DEFAULT_ROOT
    if args.dry_run:
        with tempfile.TemporaryDirectory() as cards:
            plan = make_plan(sweep, root, Path(cards))
            if plan.entries:
                print_dry_run(plan, root, args.rate)
            _check(plan, root, command)
        return 0
    again = args.retry_failed
    return do(sweep, root, command, jobs=args.jobs, ray=args.ray, retry_failed=again)


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


def command_of(args: argparse.Namespace) -> str:
    """The command that makes this sweep again, without what only this machine knows."""
    named = ["--controls"] if args.controls else []
    named.append(paths.shown(paths.user_path(args.file)))
    for key, value in options.given(args, _GRID_OPTIONS).items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        named += [f"--{key.replace('_', '-')}", text]
    return shlex.join(["./run.sh", "sweep", *named, *args.flags])


def do(
    sweep: Sweep,
    root: Path,
    command: str,
    *,
    jobs: int | None = None,
    ray: str | None = None,
    retry_failed: bool = False,
) -> int:
    """Do what is not done of a sweep; 0 when all runs are there.

    Args:
        root: the folder of the runs.
        command: what makes the sweep again, kept with it.
        jobs: runs at once (default: one a GPU; on a CPU one a core, as memory allows).
        ray: address of a Ray cluster that does them.
        retry_failed: whether runs that failed earlier are tried again.
    """
    with only_one(root, "sweep"):
        plan = make_plan(sweep, root)
        study = _check(plan, root, command)
        everything = [run.prepare() for run in plan.everything]
        write_json(index_file(root, study), study.model_dump(mode="json"))
        if retry_failed:
            forget_failures(everything)
        states = Counter(job.state for job in everything)
        left = [job for job in everything if job.state not in ("done", "failed")]
        print(f"{sweep.title}: {len(everything)} runs, {states['done']} done, {len(left)} to do")
        if states["failed"]:
            print(f"{states['failed']} failed earlier (--retry-failed tries them again)")
        print(f"folder: {paths.shown(root)}", flush=True)
        needs_gpu = any(job.needs_gpu for job in left)
        if left and ray:
            run_on_ray(left, ray, at_once=jobs, needs_gpu=needs_gpu)
        elif left:
            models = {str(run.recipe.get("model")) for run in plan.everything}
            run_here(left, slots(jobs, needs_gpu=needs_gpu, models=models))
        return _close(root, everything)


def _check(plan: SweepPlan, root: Path, command: str) -> Study:
    """What is kept of the sweep. Raises UserError for what of plan or folder stands in the way."""
    raise_all(plan.problems)
    raise_all(list(other_answers(plan.everything)))
    study = study_of(plan, command)
    tell_left_out(root, study)
    return study


def _close(root: Path, everything: Sequence[Run]) -> int:
    """Say how the sweep ended; 1 when a run failed."""
    failed = [job for job in everything if not job.done]
    for job in failed:
        failure = job.failure
        reason = f"{failure['step']}: {failure['exit']}" if failure else "not finished"
        print(f"failed: {job.label} ({reason}), {paths.shown(job.folder)}", file=sys.stderr)
    if not failed:
        print(f"all {len(everything)} runs are done")
    print(f"next: ./run.sh report {paths.shown(root)}")
    return 1 if failed else 0


# --- what would be done ---------------------------------------------------------------------------


def print_dry_run(plan: SweepPlan, root: Path, rate: float | None) -> None:
    """Print every run with its steps, tokens, FLOPs and time, and what is left to do in all.

    The time is told from `rate` tokens a second, else from what the finished runs took.
    """
    print(f"{plan.sweep.title}\nbase recipe {plan.sweep.base}, folder {root}\n")
    took = pace(sorted((root / "runs").glob("*")), lambda run: run.get("trained_tokens"))
    took = took._replace(training=1 / rate) if rate else took
    costs = [_costs(run, took) for run in plan.everything]
    rows = [_row(run, cost, plan) for run, cost in zip(plan.everything, costs, strict=True)]
    header = ["run", "rows", "steps", "exposure", "tokens", "FLOPs", "time", "state"]
    print(table(header, rows, indent=""))
    print("exposure: how much learning rate the task rows meet, in rows at the full rate")
    missing = f", others cannot be planned ({len(plan.problems)})" if plan.problems else ""
    left = [c for run, c in zip(plan.everything, costs, strict=True) if not run.done]
    tokens, flops, seconds = map(sum, zip(*left, strict=True)) if left else (0, 0, 0)
    print(f"\n{len(rows)} runs, {len(left)} left{missing}", end="")
    print("" if math.isnan(tokens) else f": {tokens:,.0f} tokens to train", end="")
    print("" if math.isnan(flops) else f", {flops:.1e} FLOPs", end="")
    source = "--rate" if rate else "the finished runs here"
    print(f"\ntime: {_time(seconds, took, source)}")


def _costs(run: Run, took: Pace) -> tuple[float, float, float]:
    """Tokens to train, the FLOPs that the Trainer will report of them, and seconds that are left;
    NaN where it is not known."""
    counted = run.about.get("trained_tokens", 0)
    tokens = math.nan if counted is None else float(counted)
    shape = shape_of(str(run.recipe.get("model")))
    unknown = math.nan if tokens else 0.0
    return tokens, reported_flops(shape, tokens) if shape else unknown, took.left(run, tokens)


def _row(run: Run, costs: tuple[float, float, float], plan: SweepPlan) -> list[object]:
    tokens, flops, seconds = costs
    exposure, note = run.planned.get("exposure"), _note(run, plan)
    time = "?" if math.isnan(seconds) else minutes(seconds) if seconds else ""
    counts = [_number(number) for number in (run.facts.rows, run.steps, tokens, flops)]
    shown = "" if exposure is None else f"{exposure:.1f}"
    return [
        *(run.label, *counts[:2], shown, *counts[2:], time),
        run.state + (f" ({note})" if note else ""),
    ]


def _number(value: float) -> str:
    """A count as it is read; nothing for 0, and what is not known as such."""
    if math.isnan(value):
        return "?"
    return "" if value == 0 else f"{value:,.0f}" if value < 1e8 else f"{value:.1e}"


def _time(seconds: float, took: Pace, source: str) -> str:
    if math.isnan(seconds + took.training):
        return "unknown until a run is finished here (or give --rate TOKENS_PER_SECOND)"
    unmeasured = "" if took.asking else "; answering and scoring come on top, not measured yet"
    rate = f"{1 / took.training:,.0f} tokens a second ({source})"
    return f"about {minutes(seconds)} one run after the other, at {rate}{unmeasured}"


def _note(run: Run, plan: SweepPlan) -> str:
    planned, notes = run.planned, []
    if planned.get("no_op"):
        notes.append("no-op: every step has learning rate 0")
    elif planned.get("exposure") == 0:
        notes.append("no task row meets a learning rate above 0")
    if run.steps and run.steps * planned["rows_per_step"] < run.facts.rows:
        notes.append(f"stops after {run.steps} steps")
    same = [e for e in plan.entries if (e.id, e.evaluation) == (run.id, run.evaluation)]
    twins = dict.fromkeys(e.cell.method for e in same if e.cell.key != run.cell.key)
    if twins:
        notes.append(f"the same run as {', '.join(twins)}")
    if run.facts.overlapping and run.spec.overlap == "keep":
        notes.append(f"{run.facts.overlapping} general rows of the card are test queries")
    return "; ".join(notes)
