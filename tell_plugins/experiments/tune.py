"""`./run.sh tune RECIPE`: settings for a task, chosen on validation rows within a time budget.

The candidates are the recipe's own settings, and these with one of them halved or doubled: the
learning rate, the copies of each task row, the amount of general data. All are trained once and
judged on validation rows; the better half goes on to a second part of the rows (or a second seed),
and the best of it, with the recipe's own settings, to all four. Between these a paired interval
decides (`tune_choice`), and last between the chosen adapters and smaller scales of their weights,
which need no training. Every candidate is a few runs of a sweep, one a part of the rows; finished
runs are found again by what they are made of.
"""

from __future__ import annotations

import argparse
import math
import shlex
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError, above_zero, raise_all
from tell_plugins.core.spec import ALL, NONE, Amount, parse_amount
from tell_plugins.core.state_files import only_one
from tell_plugins.evaluation.grids import grid_of, print_grid, table_console
from tell_plugins.evaluation.intervals import shown
from tell_plugins.experiments import derived_cards
from tell_plugins.experiments.planning import make_plan
from tell_plugins.experiments.runner import (
    add_jobs,
    forget_failures,
    minutes,
    run_here,
    slots,
)
from tell_plugins.experiments.store import Pace, Run, other_answers, pace
from tell_plugins.experiments.sweep import Sweep, make_sweep
from tell_plugins.experiments.tune_choice import (
    PARTS,
    VALIDATION,
    Result,
    choose,
    parts_of,
    result_of,
)
from tell_plugins.preparation.task_recipe import Method, recipe_text
from tell_plugins.recipe.recipes import TUNED, Recipe, load_recipe
from tell_plugins.recipe.schedule import training_of

OWN = "own settings"
RUNGS = (1, 2, PARTS)  # runs of each candidate after each round
SCALES = (0.5, 0.75)  # of the chosen adapters
_MARK = "with settings that ./run.sh tune chose"  # in the first line of what is written here
_EVALUATE = {"split": VALIDATION, "general_rows": 20, "retention_rows": 40}
# keys of a validation during training, which the choice does not look at
_VALIDATING = ("val_dataset", "eval_strategy", "eval_steps", "load_best_model_at_end")
Costs = Mapping[str, Sequence[float]]  # seconds that each run of a candidate takes yet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="the recipe to start from; its test rows are never read")
    parser.add_argument(
        "--minutes", type=above_zero, default=30, help="time that this call may take (default: 30)"
    )
    add_jobs(parser)
    parser.add_argument("--out", help="folder of the runs (default: output/tune/<recipe>)")
    parser.epilog = (
        "Candidates that do not fit into the time are left out, which is said. The same command "
        "goes on where it was stopped. It writes <recipe>_tuned.yaml beside the recipe."
    )


def run(args: argparse.Namespace) -> int:
    recipe = load_recipe(args.recipe)
    target = _target(recipe)
    folder = paths.user_target(args.out) if args.out else Path("output/tune") / recipe.name
    with only_one(folder, "tune"):
        trial = Trial(recipe, folder, 60 * args.minutes, args.jobs)
        final = halving(trial)
        chosen = choose(final)
        scales = trial.scaled(chosen)
    scale = choose(scales)
    _print_table(trial, chosen, scales)
    said = _said(final, chosen, scale, trial.parts.text)
    print(*said, sep="\n")
    paths.write_text(target, _tuned_text(recipe, target, trial.changes[chosen.name], said))
    file = shlex.quote(paths.shown(target))
    baseline = recipe.path.with_name(f"{recipe.name}_sft.yaml").is_file()
    print(f"written: {paths.shown(target)}\nnext: ./run.sh train {file}")
    print(f"      ./run.sh eval {file}" + " --against sft" * baseline)
    if scale is not chosen:
        print(f"      ./run.sh eval {file} --scales {scale.scale:g},1")
    return 0


def candidates(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What each candidate changes of the recipe's own settings, the first nothing."""
    spec, card = recipe.spec, load_card(recipe.spec.card)
    rate = training_of(recipe).learning_rate
    general = spec.general or (card.general.amount if card.general else NONE)
    found: list[tuple[str, Any, Any]] = []
    for factor in (2, 0.5):
        found.append(("learning_rate", float(f"{rate * factor:.6g}"), rate))
        found.append(("repeat", max(1, round(spec.repeat * factor)), spec.repeat))
        if general not in (ALL, NONE):
            amount = general.number * factor
            amount = max(1, round(amount)) if general.unit == "rows" else amount
            found.append(("general", str(Amount(general.unit, amount)), str(general)))
    changed = {f"{key}={value}": {key: value} for key, value, own in found if value != own}
    return {OWN: {}, **changed}


class Trial:
    """The candidates of one recipe, planned on every part of the rows; runs as they are wanted.

    Attributes:
        runs: of each candidate, one a part; one that asks for more than there is has none.
        gone: why a candidate is tried no further.
        measured: what each candidate has shown last.
    """

    def __init__(self, recipe: Recipe, root: Path, seconds: float, jobs: int | None) -> None:
        self._until = time.monotonic() + seconds
        self.recipe, cards = recipe, root.absolute() / "cards"
        derived_cards.use(cards)
        self.parts = parts_of(recipe, cards)
        self.changes = candidates(recipe)
        plan = make_plan(self._sweep(), root)
        raise_all([error for cell, error in plan.refused if cell.method == OWN][:1])
        raise_all(list(other_answers(plan.everything)))
        self.gone = {cell.method: f"left out: {error.found}" for cell, error in plan.refused}
        self.runs: dict[str, list[Run]] = {n: [] for n in self.changes if n not in self.gone}
        for planned in plan.entries:
            if planned.cell.method in self.runs:
                self.runs[planned.cell.method].append(planned)
        needs_gpu = self.runs[OWN][0].needs_gpu
        self.slots = slots(jobs, needs_gpu=needs_gpu, models=[str(recipe.get("model"))])
        self.measured = dict[str, Result]()

    def _sweep(self) -> Sweep:
        general, sources = self.recipe.spec.general_of(load_card(self.recipe.spec.card))
        shared = {"general": str(general), **({"from": list(sources)} if sources else {})}
        raw = {
            "title": f"tune {self.recipe.name}",
            "base": str(self.recipe.path),
            "methods": {name: {**shared, **change} for name, change in self.changes.items()},
            "grid": {"card": self.parts.cards},
            "seeds": self.parts.seeds,
            "evaluate": {**_EVALUATE, "rows": self.parts.rows},
            "plot": {"reference": OWN},
        }
        return make_sweep(raw, "tune", "./run.sh tune", dict.fromkeys(_VALIDATING))

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return max(0.0, self._until - time.monotonic())

    def pace(self) -> Pace:
        """What a row and an evaluation take, as runs with the recipe's own settings tell."""
        folders = [planned.folder for planned in self.runs[OWN]]
        return pace(folders, lambda run: run["mixture"]["rows"])

    def costs(self) -> Costs:
        """Estimated seconds of what is still to do of each run."""
        took = self.pace()
        return {
            name: [took.left(planned, planned.facts.rows) / len(self.slots) for planned in runs]
            for name, runs in self.runs.items()
        }

    def do(self, names: Sequence[str], parts: int) -> list[Result]:
        """Do the first `parts` runs of each; the results of those that came through.

        Raises UserError where the recipe's own settings do not run.
        """
        jobs = {name: [run.prepare() for run in self.runs[name][:parts]] for name in names}
        self._finish([job for found in jobs.values() for job in found])
        failed = {
            name: paths.shown(next(job.folder for job in found if not job.done))
            for name, found in jobs.items()
            if not all(job.done for job in found)
        }
        if OWN in failed:
            raise UserError(
                "a run with the recipe's own settings failed, so nothing can be compared",
                where=failed[OWN],
                remedy=f"./run.sh train {paths.shown(self.recipe.path)} shows what is wrong",
            )
        self.gone |= {name: f"failed, see {log}" for name, log in failed.items()}
        return [
            result_of(name, [job.eval_folder for job in found], self.parts.judges)
            for name, found in jobs.items()
            if name not in failed
        ]

    def _finish(self, jobs: Sequence[Run]) -> None:
        waiting = [job for job in jobs if not job.done]
        forget_failures(waiting)
        if waiting:
            run_here(waiting, self.slots)

    def scaled(self, chosen: Result) -> list[Result]:
        """The result of the chosen runs, and of each smaller scale if there is time for it."""
        jobs = [_at_scales(run).prepare() for run in self.runs[chosen.name][: chosen.parts]]
        evaluations = len(SCALES) * sum(not job.done for job in jobs)
        if evaluations * self.pace().asking / len(self.slots) > self.left():
            print("no time is left to judge smaller scales of the adapter")
            return [chosen]
        self._finish(jobs)
        if not all(job.done for job in jobs):
            return [chosen]  # what failed is told already
        folders = [job.eval_folder for job in jobs]
        results = [result_of(f"scale {s:g}", folders, self.parts.judges, s) for s in SCALES]
        return [chosen, *results]


def _at_scales(run: Run) -> Run:
    """The same training, judged at the smaller scales."""
    options = run.asked.options | {"scales": ",".join(map(str, SCALES))}
    asked = replace(run.asked, options=options)
    return replace(run, asked=asked, evaluation=asked.id)


# --- rounds and budget ----------------------------------------------------------------------------


def halving(trial: Trial) -> list[Result]:
    """The last round's results, the recipe's own settings first.

    Raises UserError where the time is too short to compare anything with these.
    """
    print(f"{trial.recipe.name}: {len(trial.runs)} candidates, judged by {trial.parts.text}")
    for name, why in trial.gone.items():
        print(f"  {name}: {why}")
    # as many at once as later on, which also measures how fast this machine then is
    last = trial.do(list(trial.runs)[: len(trial.slots)], 1)[:1]
    if math.isnan(trial.pace().training):  # it went on from an earlier call
        last = trial.do([OWN], 2)
    rungs: tuple[int, ...] = RUNGS
    alive = [name for name in trial.runs if name not in trial.gone]
    while rungs:
        costs, left = trial.costs(), trial.left()
        kept, rungs = affordable(alive, costs, rungs, left)
        if len(alive) > len(kept) == 1 and not trial.measured:
            raise _too_few_minutes(alive, costs, left)
        for name in (name for name in alive if name not in kept):
            trial.gone[name] = "no time"
            print(f"  {name}: dropped, it does not fit into the {minutes(left)} that are left")
        if not rungs:
            break
        if rungs[-1] < PARTS:
            print(f"  there is time for {rungs[-1]} of {PARTS} runs of a candidate")
        needed = minutes(seconds_needed(kept, costs, rungs))
        print(f"{len(kept)} candidates, {rungs[0]} of {PARTS} runs each; all takes about {needed}")
        last = trial.do(kept, rungs[0])
        trial.measured |= {result.name: result for result in last}
        alive, rungs = better_half(last), rungs[1:]
    return last


def _too_few_minutes(names: Sequence[str], costs: Costs, left: float) -> UserError:
    least = min(seconds_needed([OWN, name], costs, RUNGS) for name in names[1:])
    return UserError(
        f"{minutes(left)} are left, too few to try anything beside the recipe's own settings",
        where="--minutes",
        allowed=f"about {minutes(least)} for one candidate (estimated from the run that is done)",
        remedy=f"--minutes {math.ceil(least / 60) + 1} or more; what is done is kept",
    )


def affordable(
    names: Sequence[str], costs: Costs, rungs: tuple[int, ...], left: float
) -> tuple[list[str], tuple[int, ...]]:
    """The candidates with which all rounds fit into the time, and these rounds: as many of them
    as fit for any candidate beside the first."""
    while rungs:
        kept = fitting(names, costs, rungs, left)
        if len(kept) > 1:
            return kept, rungs
        rungs = rungs[:-1]
    return list(names[:1]), ()


def fitting(names: Sequence[str], costs: Costs, rungs: Sequence[int], left: float) -> list[str]:
    """The first candidate, and of the others in their order each with which all rounds fit."""
    kept = list(names[:1])
    for name in names[1:]:
        if seconds_needed([*kept, name], costs, rungs) <= left:
            kept.append(name)
    return kept


def seconds_needed(names: Sequence[str], costs: Costs, rungs: Sequence[int]) -> float:
    """Seconds of all rounds, if the dearest candidates stayed; `costs` are those of single runs."""
    total, before, alive = 0.0, 0, list(names)
    for parts in rungs:
        total += sum(sum(costs[name][before:parts]) for name in alive)
        others = sorted(alive[1:], key=lambda name: -sum(costs[name]))
        alive, before = [alive[0], *others[: _halved(len(alive)) - 1]], parts
    return total


def _halved(count: int) -> int:
    return max(2, math.ceil(count / 2))


def better_half(results: Sequence[Result]) -> list[str]:
    """The names of the first result, which always stays, and of the best of the others."""
    own, *others = results
    best = sorted(others, key=lambda result: result.rank, reverse=True)
    return [own.name, *(result.name for result in best[: _halved(len(results)) - 1])]


# --- what is told and written ---------------------------------------------------------------------


def _target(recipe: Recipe) -> Path:
    """Where the tuned recipe goes.

    Raises UserError for a file there that was not written here, and for a recipe that cannot be
    rewritten.
    """
    target = recipe.path.with_name(f"{recipe.name}{TUNED}.yaml")
    _tuned_text(recipe, target, {}, [])  # one that cannot be rewritten is told before hours of runs
    if target.is_file() and _MARK not in target.read_text(errors="replace").partition("\n")[0]:
        raise UserError(
            "there is a recipe of that name, which was not written by tune",
            where=paths.shown(target),
            remedy="rename it",
        )
    return target


def _print_table(trial: Trial, chosen: Result, scales: Sequence[Result]) -> None:
    """What was measured of each candidate, then of each scale; and why the others went."""
    lines = [(result, trial.do([OWN], result.parts)[0]) for result in trial.measured.values()]
    lines += [(result, chosen) for result in scales[1:]]
    notes = {chosen.name: "chosen", **{r.name: "minus the chosen as they are" for r in scales[1:]}}
    records: list[dict[str, object]] = [
        {
            "settings": result.name,
            "runs": result.parts,
            chosen.what: f"{result.score:.{result.digits}f}",
            "minus own settings": "" if result.name == other.name else _minus(result, other),
            "KL to base": f"{result.kl:.3f}" if math.isfinite(result.kl) else "not known",
            "note": notes.get(result.name, ""),
        }
        for result, other in lines
    ]
    gone = {name: why for name, why in trial.gone.items() if name not in trial.measured}
    records += [{"settings": name, "note": why} for name, why in gone.items()]
    title = f"{trial.recipe.name}, judged by {trial.parts.text}"
    print_grid(grid_of(records, title), table_console())


def _minus(result: Result, against: Result) -> str:
    found = result.minus(against)
    return "not paired" if found is None else shown(found, result.digits, sign="+")


def _said(final: Sequence[Result], chosen: Result, scale: Result, judges: str) -> list[str]:
    """What was chosen and why, in sentences."""
    own, *others = final
    if chosen is own or not chosen.is_better_than(own):
        told = "nothing is told apart as better than the recipe's own settings"
        nearer = f"{chosen.name} scores no lower and stays nearer to the base model"
        said = [f"{chosen.what}: {told}; {'they stay' if chosen is own else nearer}"]
    else:
        said = [f"{chosen.what}: {chosen.name} is better than the recipe's own settings"]
    for other in others:
        if (found := other.minus(own)) is not None:
            said.append(
                f"{other.name} minus own settings: {_minus(other, own)}, on {found.n} rows, "
                f"which show {found.smallest:.{other.digits}f} or more"
            )
    if scale is not chosen:
        said.append(
            f"{scale.name} of the adapter's weights is taken: {_minus(scale, chosen)} to "
            f"the whole, and a KL to the base of {scale.kl:.3f} in place of {chosen.kl:.3f}"
        )
    if not chosen.learned:
        said.append("CONTENT NOT LEARNED: nothing is right, or one label is given all the time")
    said.append(f"Judged by {judges}; {own.parts} of {PARTS} runs each.")
    return [*said, "No test row was read."]


def _tuned_text(recipe: Recipe, target: Path, changes: dict[str, object], said: list[str]) -> str:
    """The recipe with the chosen values; raises UserError for one that cannot be rewritten."""
    values = dict(changes)
    keys = {key: values.pop(key) for key in ("learning_rate",) if key in values}
    if "general" in values:
        values["general"] = parse_amount(str(values["general"]), task=False, where="general")
    origin, file = paths.shown(recipe.path), shlex.quote(paths.shown(target))
    changed = ", ".join(f"{key}={value}" for key, value in changes.items())
    header = [
        f"{recipe.name}, {_MARK}.",
        f"Launch:  ./run.sh train {file}",
        f"Needs:   what {origin} needs",
        f"First:   ./run.sh check {file}",
        "Result:  not measured",
        f"Differs: from {origin} in {changed or 'nothing but its output folder'}",
    ]
    why = [f"What stands above is of {origin}. Chosen on validation rows:"]
    why += [line for text in said for line in textwrap.wrap(text, 96)]
    dataset = str(recipe.spec.with_values(**values))
    method = Method(dataset, why=tuple(why), keys=keys)
    return recipe_text(recipe, target.stem, method, header, gone=())
