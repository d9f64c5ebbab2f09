"""From a sweep to its runs: what each trains on, how long, and under which name it is kept.

A run is known by a hash of what decides its result: ms-swift's settings and the mixture it sees.
So two sweeps that ask for the same run share it, whatever they call it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tell_plugins.bridge.protocol import MODEL_KEYS
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError, UserErrors
from tell_plugins.core.manifest import held_out_queries
from tell_plugins.core.mixture import GENERAL, TASK, Mixture, build_mixture, general_card
from tell_plugins.core.progress import tracked
from tell_plugins.core.rows import Rows
from tell_plugins.core.shown import secret_keys
from tell_plugins.core.spec import ALL, NONE, Amount, Spec, parse_spec
from tell_plugins.evaluation.elsewhere import foreign
from tell_plugins.evaluation.prompts import (
    answer_limit,
    general_rows,
    pairs_sha256,
    prompts_sha256,
    task_prompts,
)
from tell_plugins.evaluation.rivals import refuse_unfit
from tell_plugins.experiments import derived_cards
from tell_plugins.experiments.store import Asked, Facts, Run, hashed
from tell_plugins.experiments.sweep import OWN_KEYS, SPEC_KEYS, TEST_ANCHOR, Cell, Sweep
from tell_plugins.recipe.models import count, own_tokenizer
from tell_plugins.recipe.recipes import SECRETS_REMEDY, Recipe, as_list, load_recipe
from tell_plugins.recipe.schedule import Plan, exposure, plan, training_of

BASE, BASE_METHOD = "base", "base model"
_FORMAT = 1  # raised when a run of the same hash would come out otherwise
# keys that do not touch a run's result; the first three are not kept with it either
_FREE = ("dataset", "output_dir", "add_version", "logging_dir", "run_name", "report_to")
# keys of the model that every base model's id is made of, given or not; others only where given
_ALWAYS = (
    *("model", "model_type", "model_revision", "model_kwargs", "template", "system"),
    *("rope_scaling", "new_special_tokens", "quant_method", "quant_bits"),
)
_OF_A_GPU = ("torch_dtype", "device_map")  # on a CPU they are the machine's choice


@dataclass
class SweepPlan:
    """Everything a sweep has to do: entries in the file's order, runs once each.

    Attributes:
        refused: the cells that cannot be planned, and why.
    """

    sweep: Sweep
    entries: list[Run] = field(default_factory=list)
    refused: list[tuple[Cell, UserError]] = field(default_factory=list)

    @property
    def problems(self) -> list[UserError]:
        """Why cells cannot be planned; what several have in common is told at the first."""
        first: dict[str, UserError] = {}
        for problem in UserErrors([error for _, error in self.refused]).problems:
            first.setdefault(problem.found, problem)
        return list(first.values())

    @property
    def everything(self) -> list[Run]:
        """All that is to be done, the base models first."""
        return [*self.bases, *self.runs]

    @property
    def runs(self) -> list[Run]:
        """The runs to be done: an entry that comes to the same run as an earlier one is not."""
        return _each_once(self.entries)

    @property
    def bases(self) -> list[Run]:
        """The base model once for every model, card and split among the entries."""
        found = _each_once(entry.base for entry in self.entries if entry.base)
        named = [{"card": base.asked.card, **model_of(base.recipe)} for base in found]
        keys = dict.fromkeys(key for names in named for key in names)
        several = [key for key in keys if any(n.get(key) != named[0].get(key) for n in named)]
        bases = []
        for base, names in zip(found, named, strict=True):
            at = {key: names.get(key) for key in several}
            rest = [f", {key}={value}" for key, value in at.items() if key != "card"]
            label = f"{BASE_METHOD} ({base.asked.card}{''.join(rest)})"
            bases.append(replace(base, label=label, cell=replace(base.cell, at=at)))
        return bases


def _each_once(runs: Iterable[Run]) -> list[Run]:
    """Without what comes to the same run, asked the same, as an earlier one."""
    found: dict[tuple[str, str], Run] = {}
    for run in runs:
        found.setdefault((run.id, run.evaluation), run)
    return list(found.values())


def needs_gpu(recipe: Recipe) -> bool:
    return not recipe.values.get("use_cpu")


def model_of(recipe: Recipe) -> dict[str, Any]:
    """What decides which model answers, and how a prompt reaches it."""
    without = ("external_plugins", *(() if needs_gpu(recipe) else _OF_A_GPU))
    given = {key: recipe.get(key) for key in MODEL_KEYS if key not in without}
    return {key: v for key, v in given.items() if v is not None or key in _ALWAYS}


def base_id(recipe: Recipe) -> str:
    """How a recipe's model is known before training."""
    return hashed([_FORMAT, BASE, model_of(recipe)])[:12]


def run_id(recipe: Recipe, spec: Spec, mixture: str, rival: str = "") -> str:
    """How a run is known that trains on the mixture of that hash, or whose rival learns from it."""
    if rival:
        return hashed([_FORMAT, rival, model_of(recipe), mixture])[:12]
    values = {key: value for key, value in recipe.values.items() if key not in _FREE}
    world = training_of(recipe).world  # several processes take other steps from the same rows
    several = [] if world == 1 else [f"{world} processes"]
    held = [f"kl {spec.kl:g}"] if spec.kl else []  # the same rows, another loss
    return hashed([_FORMAT, values, mixture, *several, *held])[:12]


class Planner:
    """Resolves the cells of one sweep; `cards` is the folder of the cards that are made for it."""

    def __init__(self, sweep: Sweep, root: Path, cards: Path) -> None:
        self.sweep, self.root, self.cards = sweep, root, cards
        derived_cards.use(cards)
        flags: dict[str, str | None] = {key: f"flag --{key}" for key in sweep.flags}
        self.base = load_recipe(sweep.base).with_values(**sweep.flags).placed(flags)
        self._spec = self.base.spec
        self._wanted = {cell.key for cell in sweep.cells()}
        self._done: dict[str, tuple[Run, Mixture]] = {}
        self._asked_of = functools.cache(self._make_asked)
        self._held_out = functools.cache(self._make_held_out)

    def planned(self, cell: Cell) -> tuple[Run, Mixture]:
        """The run of a cell, and what it trains on. Raises UserError for what the user can mend."""
        if cell.key not in self._done:
            self._done[cell.key] = self._make(cell)
        return self._done[cell.key]

    def _make(self, cell: Cell) -> tuple[Run, Mixture]:
        recipe = self._recipe(cell)  # first: a secret is told before whatever else is wrong
        spec = self._task_spec(cell)
        equal = self._reference(cell, "equal_steps")[0] if "equal_steps" in cell.settings else None
        spec = _in_rows(spec, equal.facts) if equal else spec
        mixture = build_mixture(self._trained_on(cell, spec))
        if equal:
            recipe, mixture = _bring_to_steps(recipe, mixture, equal.steps)
        mixed = mixture.spec
        recipe = recipe.with_values(dataset=[str(mixed)])
        about = _about(cell, recipe, mixture)
        about["planned"]["leaked"] = self._leaked(mixture, spec)
        parts = (mixed.card, mixed.task, cell.rival or mixed.general or "", cell.seed)
        run = self._run(
            run_id(recipe, mixed, mixture.hash, cell.rival),
            [str(part) for part in parts if str(part)],
            about,
            cell=cell,
            recipe=recipe,
            asked=self._asked(spec, cell.settings.get(TEST_ANCHOR)),
            spec=mixed,
            facts=Facts(**about["mixture"]),
            base=self._base(recipe, Spec(spec.card, anchor=self._spec.anchor)),
            equal_steps=equal,
        )
        return run, mixture

    def _base(self, recipe: Recipe, spec: Spec) -> Run:
        """A recipe's model before training."""
        return self._run(
            base_id(recipe),
            [BASE, Path(str(recipe.get("model"))).name],
            {"base": True},
            cell=Cell(BASE_METHOD, {}, 0, {}),
            recipe=recipe,
            asked=self._asked(spec),
            spec=spec,
        )

    def _run(self, known: str, named: Sequence[str], about: dict[str, Any], **more: Any) -> Run:
        """The run of that id, in the folder that is there already, whatever it is called."""
        runs = self.root.absolute() / "runs"
        name = re.sub(r"[^A-Za-z0-9.+-]+", "_", "-".join(named))[:80]
        return Run(
            folder=next(iter(sorted(runs.glob(f"*-{known}"))), runs / f"{name}-{known}"),
            evaluation=more["asked"].id,
            label=more["cell"].label,
            steps=about.get("planned", {}).get("steps", 0),
            needs_gpu=needs_gpu(more["recipe"]),
            id=known,
            about={"format": 1, "id": known, "model": more["recipe"].get("model"), **about},
            **more,
        )

    def _recipe(self, cell: Cell) -> Recipe:
        """The settings of a cell."""
        ours = (*SPEC_KEYS, *OWN_KEYS)
        values = {key: value for key, value in cell.settings.items() if key not in ours}
        places = {key: self.sweep.place_of(cell.method, key) for key in values}
        recipe = self.base.with_values(**values, seed=cell.seed).placed(places)
        for key in secret_keys(recipe.values):
            raise UserError(
                f"'{key}' would be kept with the runs and published with their report",
                where=recipe.where(key),
                remedy=SECRETS_REMEDY,
            )
        return recipe

    def _task_spec(self, cell: Cell) -> Spec:
        """The dataset string of a cell before it is derived, with every default written out."""
        own, card = self._spec, str(cell.settings.get("card", self._spec.card))
        if card != own.card:  # amounts and sources are the other card's own
            own = own.with_values(card=card, split="train", task=ALL, general=None, sources=None)
        given = {key: value for key, value in cell.settings.items() if key in SPEC_KEYS}
        texts = [f"{key}={'+'.join(map(str, as_list(value)))}" for key, value in given.items()]
        group = "runs" if cell.method in self.sweep.runs else "methods"
        where = f"{self.sweep.place(group, cell.method)}, {cell.label}"
        found = parse_spec(":".join(filter(None, (f"tell/{card}", "/".join(texts)))), where=where)
        names = ("sources" if key == "from" else key for key in given)
        changed = {name: getattr(found, name) for name in names}
        return self._written_out(own.with_values(**changed, seed=cell.seed))

    def _written_out(self, spec: Spec) -> Spec:
        card = load_card(spec.card)
        if card.general is None:
            raise UserError(
                f"'{card.name}' is general data and has no task",
                where=f"{self.sweep.place('base')}, base {self.sweep.base}",
                allowed="the recipe of a task",
                remedy="name the task's recipe; 'general_only' makes the run without task rows",
            )
        amount = spec.general or card.general.amount
        if amount == NONE:
            return spec.with_values(general=NONE, sources=None)
        names = map(self._held_out, spec.sources or card.general.sources)
        return spec.with_values(general=amount, sources=tuple(names))

    def _trained_on(self, cell: Cell, spec: Spec) -> Spec:
        """The dataset string that a cell trains on, where it is made of another's mixture too."""
        if cell.rival:
            place = f"{self.sweep.place()}, {cell.label}: rival"
            refuse_unfit(cell.rival, load_card(spec.card), place)
            alone = Spec(spec.card, split=spec.split, task=spec.task, general=NONE, seed=spec.seed)
            return alone.with_values(anchor=spec.anchor)
        if "general_only" in cell.settings:
            _, mixture = self._reference(cell, "general_only")
            return Spec(derived_cards.of_general_rows(mixture, self.cards), seed=cell.seed)
        if "random_text" in cell.settings:
            _, mixture = self._reference(cell, "random_text")
            name = derived_cards.of_general_rows(mixture, self.cards, shuffled=True)
            return spec.with_values(sources=(name,), general=ALL)
        return spec

    def _reference(self, cell: Cell, key: str) -> tuple[Run, Mixture]:
        """The run that `key` names: at the same point of the grid and with the same seed.

        Raises UserError where there is none, or its steps count and the sweep does not run it.
        """
        method = str(cell.settings[key])
        found = self.sweep.cell(method, cell.at, cell.seed)
        if found is None or (key == "equal_steps" and found.key not in self._wanted):
            raise UserError(
                f"'{key}: {method}', but '{method}' is crossed with the grid and has no run here",
                where=f"{self.sweep.name}, {cell.label}",
                allowed="a method with a run at the same point of the grid",
                remedy="put this one under 'methods', or name a run that sets the grid's keys "
                "itself",
            )
        return self.planned(found)

    def _make_held_out(self, name: str) -> str:
        """The general card of that name without the rows that all runs are measured on."""
        rows = self.sweep.evaluate.general_rows
        return derived_cards.with_held_out(general_card(name), rows, self.cards) if rows else name

    def _asked(self, spec: Spec, anchor: Any = None) -> Asked:
        tested = anchor or self.sweep.evaluate.anchor or spec.anchor
        return self._asked_of(Spec(spec.card, anchor=str(tested)))

    def _make_asked(self, spec: Spec) -> Asked:
        """What is asked of models of that card and anchor. Raises UserError where there is no such
        anchor, and for more rows than there are."""
        wanted, card = self.sweep.evaluate, load_card(spec.card)
        task = task_prompts(card, wanted.split, spec.anchor, wanted.rows)[1]
        content = [prompts_sha256(task), answer_limit(card, wanted.max_new_tokens)]
        if wanted.general_rows:
            spec = spec.with_values(sources=(self._held_out(self._first_source(card)),))
            content.append(prompts_sha256(foreign(wanted.retention_rows).questions))
            content.append(pairs_sha256(general_rows([spec], card, wanted.general_rows)))
        # ids of earlier releases know nothing of these two
        unset = {key for key in ("shots", "learned") if not getattr(wanted, key)}
        options = wanted.model_dump(exclude={"anchor", *unset}, mode="json")
        return Asked(str(spec), spec.anchor, options, hashed(content))

    def _first_source(self, card: Card) -> str:
        """The general card whose held-out rows all runs are measured on, whatever they train on."""
        named = self.sweep.settings.get("from")
        if named is not None:
            return str(as_list(named)[0]).partition("+")[0]
        assert card.general is not None
        own = self._spec.sources if card.name == self._spec.card else None
        return (own or card.general.sources)[0]

    def _leaked(self, mixture: Mixture, asked: Spec) -> int:
        """How many of the rows asked have a question that a general row of the mixture asks."""
        wanted = self.sweep.evaluate
        card = load_card(asked.card)
        task, prompts = task_prompts(card, wanted.split, asked.anchor, wanted.rows)
        drawn = ((source.rows, source.used) for source in mixture.sources)
        used = [rows.keys[taken] for rows, taken in drawn if isinstance(rows, Rows)]
        keys = task.question_keys[[prompt.row for prompt in prompts]]
        return int(np.isin(keys, np.concatenate(used)).sum()) if used else 0


def make_plan(sweep: Sweep, root: Path, cards: Path | None = None) -> SweepPlan:
    """Resolve a whole sweep, whose runs lie in `root`; the cards that are made for it go there too,
    or into `cards`."""
    planner, wanted = Planner(sweep, root, cards or root.absolute() / "cards"), sweep.cells()
    plan = SweepPlan(sweep)
    for cell in tracked(wanted, "planning", "runs", len(wanted)):
        try:
            plan.entries.append(planner.planned(cell)[0])
        except UserError as error:
            plan.refused.append((cell, error))
    return plan


def _about(cell: Cell, recipe: Recipe, mixture: Mixture) -> dict[str, Any]:
    """What is kept of a run, without a path of this machine."""
    schedule = plan(len(mixture), training_of(recipe))
    rival = {"rival": cell.rival} if cell.rival else {}
    meets = mixture.is_task.any() and not rival
    return {
        "base": False,
        "spec": str(mixture.spec),
        "seed": cell.seed,
        "settings": {key: value for key, value in recipe.values.items() if key not in _FREE[:3]},
        "mixture": asdict(facts(mixture)),
        **rival,
        "trained_tokens": 0 if rival else trained_tokens(mixture, schedule, recipe),
        "planned": {
            "steps": 0 if rival else schedule.steps,
            "warmup_steps": schedule.warmup_steps,
            "rows_per_step": schedule.training.rows_per_step,
            "no_op": not rival and schedule.is_no_op,
            "exposure": round(exposure(schedule, mixture.is_task).weight, 3) if meets else None,
        },
    }


def facts(mixture: Mixture) -> Facts:
    """The counts of a mixture."""
    task = [source for source in mixture.sources if source.role == TASK]
    general = [source for source in mixture.sources if source.role == GENERAL]
    counted, lengths = mixture.counter is not None, mixture.lengths
    return Facts(
        hash=mixture.hash,
        rows=len(mixture),
        task_rows=sum(len(source.used) for source in task),
        copies=task[0].repeat if task else 1,
        general_rows=sum(len(source.used) for source in general),
        tokens=None if lengths is None else int(lengths.sum()),
        task_tokens=sum(source.tokens() or 0 for source in task) if counted else None,
        general_tokens=sum(source.tokens() or 0 for source in general) if counted else None,
        overlapping=held_out_queries(mixture),
    )


def trained_tokens(mixture: Mixture, schedule: Plan, recipe: Recipe) -> int | None:
    """Tokens of all entries that the steps hold, in every epoch; None when not counted.

    Without the counting tokenizer they are counted with the model's own, as `check` does.
    """
    if mixture.lengths is not None:
        return schedule.over_the_run(mixture.lengths.sum(axis=1))
    own = own_tokenizer(recipe.text("model"))
    return None if own is None else schedule.over_the_run(count(mixture, own, recipe).rows[:, 0])


def _in_rows(spec: Spec, reference: Facts) -> Spec:
    """The spec with amounts in tokens as the rows that the reference takes for them.

    An anchor counts as tokens of its rows: without it, or with another, the same amount would be
    other rows. (Amounts over several general cards stay: their rows are not told apart.)
    """
    if spec.task.unit == "tok":
        spec = spec.with_values(task=Amount("rows", reference.task_rows))
    general = spec.general
    if general is not None and general.unit == "tok" and len(spec.sources or ()) == 1:
        spec = spec.with_values(general=Amount("rows", reference.general_rows))
    return spec


def _bring_to_steps(recipe: Recipe, mixture: Mixture, steps: int) -> tuple[Recipe, Mixture]:
    """A recipe and mixture that take exactly `steps` optimizer steps.

    Task rows alone are repeated as often as it needs, and the last round is cut by `max_steps`.
    """
    training = training_of(recipe)
    own = plan(len(mixture), training).steps
    if own < steps and mixture.spec.general == NONE:
        entries = len(mixture) // mixture.spec.repeat
        repeat = -(-training.rows_per_step * steps // entries)
        mixture = build_mixture(mixture.spec.with_values(repeat=repeat))
        own = plan(len(mixture), training).steps
    if own < steps:
        raise UserError(
            f"the run takes {own} optimizer steps and cannot be brought to {steps}",
            where=str(mixture.spec),
            allowed="task rows alone, which are repeated, or as many rows as the other run",
            remedy="give both the same amounts in rows",
        )
    return (recipe.with_values(max_steps=steps) if own > steps else recipe), mixture
