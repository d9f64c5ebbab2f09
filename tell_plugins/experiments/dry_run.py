"""What a sweep would do: every run with its steps, tokens, FLOPs and time, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tell_plugins.core.errors import UserError
from tell_plugins.core.files import read_json
from tell_plugins.experiments.planning import Planned, SweepPlan
from tell_plugins.experiments.records import AGAIN, Evaluated, RunFacts, Trained
from tell_plugins.experiments.runner import minutes
from tell_plugins.experiments.store import EVALUATED, RUN, TRAINED, Job, Store
from tell_plugins.recipe.estimate import reported_flops
from tell_plugins.recipe.shapes import shape_of
from tell_plugins.recipe.tables import table


@dataclass(frozen=True)
class Rates:
    """How fast this sweep's runs are. None is not known.

    Attributes:
        tokens: trained tokens a second, counted as the mixture counts them.
        evaluation: seconds that one evaluation takes.
        source: where the rates come from.
    """

    tokens: float | None
    evaluation: float | None
    source: str


def measured_rates(store: Store, given: float | None) -> Rates:
    """`given` tokens a second, else what the finished runs of the folder took."""
    if given is not None and given <= 0:
        raise UserError(
            "a rate of 0 or less",
            where="--rate",
            allowed="tokens per second, above 0",
            remedy="leave it out: then the rate of finished runs is taken",
        )
    trained, seconds, evaluations = 0, 0.0, []
    for folder in sorted(store.runs.glob("*")) if store.runs.is_dir() else []:
        run = read_json(folder / RUN, RunFacts, AGAIN)
        trains = run is not None and not run["base"]
        facts = read_json(folder / TRAINED, Trained, AGAIN) if trains else None
        if facts and facts.get("seconds") and run.get("trained_tokens"):
            trained += run["trained_tokens"]
            seconds += facts["seconds"]
        for marker in folder.glob(f"eval/*/{EVALUATED}"):
            evaluations.append(float(read_json(marker, Evaluated, AGAIN)["seconds"]))
    rate = given or (trained / seconds if seconds else None)
    source = "--rate" if given else "the finished runs here" if seconds else "not measured yet"
    return Rates(rate, sum(evaluations) / len(evaluations) if evaluations else None, source)


@dataclass(frozen=True)
class Line:
    """One run of the listing. `exposure`: of its task rows, None without any."""

    label: str
    rows: int
    steps: int
    exposure: float | None
    tokens: int | None
    flops: float | None
    seconds: float | None
    state: str
    note: str


def lines(plan: SweepPlan, store: Store, rates: Rates) -> list[Line]:
    """The runs of a plan, the base model first."""
    found = [
        Line(base.label, 0, 0, None, 0, 0.0, rates.evaluation, store.job(base).state, "")
        for base in plan.bases
    ]
    for run in plan.runs:
        job = store.job(run)
        shape = shape_of(str(run.recipe.get("model")))
        tokens = run.trained_tokens
        found.append(
            Line(
                label=run.cell.label,
                rows=run.facts.rows,
                steps=run.steps,
                exposure=run.exposure,
                tokens=tokens,
                flops=None if shape is None or tokens is None else reported_flops(shape, tokens),
                seconds=seconds_left(job, tokens, rates),
                state=job.state,
                note=_note(run, plan),
            )
        )
    return found


def seconds_left(job: Job, tokens: int | None, rates: Rates) -> float | None:
    """What is left to do of a run; None when it is not known."""
    if job.done:
        return 0.0
    if job.trained:
        return rates.evaluation
    if tokens is None or rates.tokens is None:
        return None
    return tokens / rates.tokens + (rates.evaluation or 0.0)


def _note(run: Planned, plan: SweepPlan) -> str:
    notes = ["no-op: every step has learning rate 0"] if run.is_no_op else []
    if run.exposure == 0 and not run.is_no_op:
        notes.append("no task row meets a learning rate above 0")
    if run.steps and run.steps * run.plan.training.rows_per_step < run.facts.rows:
        notes.append(f"stops after {run.steps} steps")
    twins = [
        entry.cell.method
        for entry in plan.entries
        if (entry.id, entry.evaluation) == (run.id, run.evaluation)
        and entry.cell.key != run.cell.key
    ]
    if twins:
        notes.append(f"the same run as {', '.join(dict.fromkeys(twins))}")
    if run.facts.overlapping and run.spec.overlap == "keep":
        notes.append(f"{run.facts.overlapping} general rows of the card are test queries")
    return "; ".join(notes)


def print_dry_run(plan: SweepPlan, store: Store, rates: Rates) -> None:
    """Print the listing and what is left to do in all."""
    found = lines(plan, store, rates)
    sweep = plan.sweep
    print(f"{sweep.title}\nbase recipe {sweep.base}, folder {store.root}\n")
    header = ["run", "rows", "steps", "exposure", "tokens", "FLOPs", "time", "state"]
    rows = [
        [
            line.label,
            f"{line.rows:,}" if line.rows else "",
            f"{line.steps:,}" if line.steps else "",
            "" if line.exposure is None else f"{line.exposure:.1f}",
            _number(line.tokens),
            _number(line.flops),
            "?" if line.seconds is None else minutes(line.seconds) if line.seconds else "",
            line.state + (f" ({line.note})" if line.note else ""),
        ]
        for line in found
    ]
    print(table(header, rows, indent=""))
    left = [line for line in found if line.state != "done"]
    tokens = [line.tokens for line in left]
    missing = f", others cannot be planned ({len(plan.problems)})" if plan.problems else ""
    print("exposure: how much learning rate the task rows meet, in rows at the full rate")
    print(f"\n{len(found)} runs, {len(left)} left{missing}", end="")
    if None not in tokens:
        print(f": {sum(t or 0 for t in tokens):,} tokens to train", end="")
    flops = [line.flops for line in left]
    if None not in flops:
        print(f", {sum(f or 0 for f in flops):.1e} FLOPs", end="")
    print(f"\ntime: {_total(left, rates)}")


def _total(left: Sequence[Line], rates: Rates) -> str:
    seconds = [line.seconds for line in left if line.steps]
    if rates.tokens is None or None in seconds:
        return "unknown until a run is finished here (or give --rate TOKENS_PER_SECOND)"
    total = sum(line.seconds or 0.0 for line in left)
    text = f"about {minutes(total)} one run after the other, at {rates.tokens:,.0f} tokens a second"
    missing = "" if rates.evaluation else "; answering and scoring come on top, not measured yet"
    return f"{text} ({rates.source}){missing}"


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    return "" if value == 0 else f"{value:,.0f}" if value < 1e8 else f"{value:.1e}"


def default_root() -> Path:
    """Where sweeps go without --out: one folder, so that they share their runs."""
    return Path("output/sweeps")
