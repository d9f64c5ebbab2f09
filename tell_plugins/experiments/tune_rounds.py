"""The rounds of `tune`: candidates around a recipe's settings, of which the better half goes on.

Every candidate is a few runs of a sweep, one a part of the rows. Finished runs are found again by
what they are made of. Before each round the time of all that is left is estimated from finished
runs, and candidates that do not fit into the budget go.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError, raise_all
from tell_plugins.core.files import read_json
from tell_plugins.core.spec import ALL, NONE, Amount
from tell_plugins.experiments.dry_run import measured_rates, seconds_left
from tell_plugins.experiments.earlier import other_answers
from tell_plugins.experiments.machine import slots
from tell_plugins.experiments.planning import (
    Planned,
    Planner,
    SweepPlan,
    cards_environment,
    cells,
    training_of,
)
from tell_plugins.experiments.records import AGAIN, Trained
from tell_plugins.experiments.runner import forget_failures, minutes, run_here
from tell_plugins.experiments.store import TRAINED, Store
from tell_plugins.experiments.sweep import Sweep, make_sweep
from tell_plugins.experiments.tune_choice import Result, result_of
from tell_plugins.experiments.tune_rows import PARTS, VALIDATION, parts_of
from tell_plugins.recipe.recipes import Recipe

OWN = "own settings"
RUNGS = (1, 2, PARTS)  # runs of each candidate after each round
SCALES = (0.5, 0.75)
_EVALUATE = {"split": VALIDATION, "general_rows": 20, "retention_rows": 40}
# keys of a validation during training, which the choice does not look at
_VALIDATING = ("val_dataset", "eval_strategy", "eval_steps", "load_best_model_at_end")


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
    """The candidates of one recipe, planned on every part of the rows; runs as they are wanted."""

    def __init__(self, recipe: Recipe, store: Store, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self.recipe, self.store = recipe, store
        os.environ["TELL_CARDS"] = cards_environment(store.cards)
        self.parts = parts_of(recipe, store.cards)
        self.changes = candidates(recipe)
        self.gone: dict[str, str] = {}  # candidates that went, and why
        self.runs = self._planned()
        self.slots = slots(None, needs_gpu=self.runs[OWN][0].needs_gpu)
        self.measured = dict[str, Result]()  # of each candidate what was measured last

    def _planned(self) -> dict[str, list[Planned]]:
        """The runs of each candidate; one that asks for more than there is, is left out."""
        sweep = self._sweep()
        planner = Planner(sweep, self.store.cards)
        found: dict[str, list[Planned]] = {name: [] for name in self.changes}
        for cell in cells(sweep):
            try:
                found[cell.method].append(planner.planned(cell))
            except UserError as error:
                if cell.method == OWN:
                    raise
                self.gone[cell.method] = f"left out: {error.found}"
        entries = [run for runs in found.values() for run in runs]
        raise_all(list(other_answers(SweepPlan(sweep, entries), self.store)))
        return {name: runs for name, runs in found.items() if name not in self.gone}

    def _sweep(self) -> Sweep:
        spec, card = self.recipe.spec, load_card(self.recipe.spec.card)
        assert card.general is not None  # `parts_of` refuses general data
        shared = {
            "general": str(spec.general or card.general.amount),
            "from": list(spec.sources or card.general.sources),
        }
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
        return self._until - time.monotonic()

    def costs(self) -> dict[str, list[float]]:
        """Estimated seconds of what is still to do of each run, by candidate."""
        rates = measured_rates(self.store, None)
        first = self.runs[OWN][0]
        took = read_json(self.store.folder_of(first) / TRAINED, Trained, AGAIN) or {}
        by_row = (took.get("seconds") or 0.0) / first.facts.rows  # where no tokenizer is at hand

        def seconds(run: Planned) -> float:
            found = seconds_left(self.store.job(run), run.trained_tokens, rates)
            if found is None:
                found = by_row * run.facts.rows + (rates.evaluation or 0.0)
            return found / len(self.slots)

        return {name: [seconds(run) for run in runs] for name, runs in self.runs.items()}

    def do(self, names: Sequence[str], parts: int) -> list[str]:
        """Do the first `parts` runs of each; the names of those that came through.

        Raises UserError where the recipe's own settings do not run.
        """
        runs = {name: self.runs[name][:parts] for name in names}
        self._finish([run for found in runs.values() for run in found])
        for name, found in runs.items():
            jobs = [self.store.job(run) for run in found]
            log = next((paths.shown(job.folder) for job in jobs if not job.done), None)
            if log is not None:
                self.gone[name] = f"failed, see {log}"
            if log is not None and name == OWN:
                raise UserError(
                    "a run with the recipe's own settings failed, so nothing can be compared",
                    where=log,
                    remedy=f"./run.sh train {paths.shown(self.recipe.path)} shows what is wrong",
                )
        return [name for name in names if name not in self.gone]

    def _finish(self, runs: Sequence[Planned]) -> None:
        jobs = [job for job in map(self.store.prepare, runs) if not job.done]
        forget_failures(jobs)
        if jobs:
            run_here(jobs, self.slots, self.store.cards)

    def result(self, name: str, parts: int) -> Result:
        """The result of the first `parts` runs, which are done."""
        return self._judged(name, self.runs[name][:parts])

    def _judged(self, name: str, runs: Sequence[Planned], scale: float = 1) -> Result:
        folders = [self.store.job(run).eval_folder for run in runs]
        return result_of(name, folders, self.parts.judges, scale)

    def scaled(self, chosen: Result) -> list[Result]:
        """The result of the chosen runs, and at each smaller scale; alone without time for it."""
        asked = {"scales": ",".join(map(str, SCALES))}
        runs = [
            replace(run, evaluation=replace(e, options={**e.options, **asked}))
            for run in self.runs[chosen.name][: chosen.parts]
            for e in [run.evaluation]
        ]
        to_do = [run for run in runs if not self.store.job(run).done]
        if self.scale_seconds(len(to_do)) > max(0.0, self.left()):
            print("no time is left to judge smaller scales of the adapter")
            return [chosen]
        self._finish(runs)
        if not all(self.store.job(run).done for run in runs):
            return [chosen]  # what failed is told already
        return [chosen, *(self._judged(f"scale {scale:g}", runs, scale) for scale in SCALES)]

    def scale_seconds(self, runs: int) -> float:
        """Estimated seconds of judging so many runs at the smaller scales."""
        once = measured_rates(self.store, None).evaluation or 0.0
        return runs * len(SCALES) * once / len(self.slots)


def halving(trial: Trial) -> list[Result]:
    """The last round's results, the recipe's own settings first.

    Raises UserError where the time is too short to compare anything with these.
    """
    print(f"{trial.recipe.name}: {len(trial.runs)} candidates, judged by {trial.parts.text}")
    for name, why in trial.gone.items():
        print(f"  {name}: {why}")
    trial.do([OWN], 1)  # which also measures how fast this machine is
    alive, last = list(trial.runs), [trial.result(OWN, 1)]
    rungs = _rungs(trial, alive)
    while rungs:
        costs, left = trial.costs(), max(0.0, trial.left())
        kept = fitting(alive, costs, rungs, left - trial.scale_seconds(rungs[-1]))
        if kept == [OWN]:  # a comparison comes before the scales
            kept = fitting(alive, costs, rungs, left)
        for name in (name for name in alive if name not in kept):
            trial.gone[name] = "no time"
            print(f"  {name}: dropped, it does not fit into the {minutes(left)} that are left")
        if kept == [OWN]:
            break
        needed = minutes(seconds_needed(kept, costs, rungs))
        print(f"{len(kept)} candidates, {rungs[0]} of {PARTS} runs each; all takes about {needed}")
        last = [trial.result(name, rungs[0]) for name in trial.do(kept, rungs[0])]
        trial.measured |= {result.name: result for result in last}
        alive, rungs = better_half(last), rungs[1:]
    return last


def _rungs(trial: Trial, names: Sequence[str]) -> Sequence[int]:
    """The rounds that fit for one candidate beside the recipe's own settings, from the first.

    Raises UserError where there is no time for any.
    """
    costs, left = trial.costs(), max(0.0, trial.left())
    for rungs in (RUNGS[:count] for count in range(len(RUNGS), 0, -1)):
        if len(names) == 1 or len(fitting(names, costs, rungs, left)) > 1:
            if rungs != RUNGS:
                print(f"  there is time for {rungs[-1]} of {PARTS} runs of a candidate")
            return rungs
    least = min(seconds_needed([OWN, name], costs, RUNGS) for name in names[1:])
    raise UserError(
        f"{minutes(left)} are left, too few to try anything beside the recipe's own settings",
        where="--minutes",
        allowed=f"about {minutes(least)} for one candidate (estimated from the run that is done)",
        remedy=f"--minutes {math.ceil(least / 60) + 1} or more; what is done is kept",
    )


def fitting(
    names: Sequence[str], costs: Mapping[str, Sequence[float]], rungs: Sequence[int], left: float
) -> list[str]:
    """The first candidate, and of the others in their order each with which all rounds fit."""
    kept = list(names[:1])
    for name in names[1:]:
        if seconds_needed([*kept, name], costs, rungs) <= left:
            kept.append(name)
    return kept


def seconds_needed(
    names: Sequence[str], costs: Mapping[str, Sequence[float]], rungs: Sequence[int]
) -> float:
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
