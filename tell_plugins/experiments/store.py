"""Runs, and where they lie: in the folder of one or more sweeps, side by side, each once.

    DIR/runs/<name>-<id>/     one run: recipe, log, what ms-swift wrote, answers, markers
    DIR/sweeps/<name>.json    one sweep: its settings and which run each of its entries is
    DIR/cards/                cards that were made for the runs

A run is known by a hash of what decides its result: ms-swift's settings and the mixture it sees.
So two sweeps that ask for the same run share it, whatever they call it.

A marker (`trained.json`, `evaluated.json`) is written last and in one piece: where it is, the step
is done and never repeated; where it is not, the step is done again or goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tell_plugins.bridge.protocol import MODEL_KEYS
from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.spec import Spec, parse_spec
from tell_plugins.core.state_files import Name, Shape, read_json, write_json
from tell_plugins.evaluation import elsewhere
from tell_plugins.evaluation import prompts as prompting
from tell_plugins.evaluation.answers import GENERAL, SETTINGS, saved_settings
from tell_plugins.experiments.sweep import Cell
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.schedule import Plan

RUN, TRAINED, EVALUATED, FAILED = "run.json", "trained.json", "evaluated.json", "failed.json"
RECIPE, OPTIONS = "recipe.yaml", "options.json"
TRAIN_FOLDER, EVAL_FOLDER = "train", "eval"
AGAIN = "restore the file, or remove the run's folder and start the sweep again"
BASE = "base"
_FORMAT = 1  # raised when a run of the same hash would come out otherwise
# keys that do not touch a run's result; the first three are not shown with it either
_FREE = ("dataset", "output_dir", "add_version", "logging_dir", "run_name", "report_to")
# keys of the model that every base model's id is made of, given or not; others only where given
_ALWAYS = (
    *("model", "model_type", "model_revision", "model_kwargs", "template", "system"),
    *("rope_scaling", "new_special_tokens", "quant_method", "quant_bits"),
)
_OF_A_GPU = ("torch_dtype", "device_map")  # on a CPU they are the machine's choice


class _Run(Shape):
    base: bool
    mixture: dict[str, Any] | None = None
    trained_tokens: int | None = None


class _Trained(Shape):
    steps: int = 0  # a base model's says nothing
    checkpoint: Name | None = None
    seconds: float | None = None


class _Evaluated(Shape):
    seconds: float


class _Failed(Shape):
    step: str
    exit: str
    log: Name
    tail: list[str]  # of its log


_SHAPES = {RUN: _Run, TRAINED: _Trained, EVALUATED: _Evaluated, FAILED: _Failed}


def facts_in(folder: Path, name: str) -> dict[str, Any]:
    """What `run.json` or a marker in the folder of a run, or of what was asked of it, says; nothing
    where it is not there. Raises UserError for one that is none."""
    return read_json(folder / name, _SHAPES[name], AGAIN) or {}


def failure(folder: Path, evaluation: str) -> dict[str, Any]:
    """What is known of a failed attempt, of a run's training or of this evaluation."""
    return facts_in(folder, FAILED) or facts_in(folder / EVAL_FOLDER / evaluation, FAILED)


@dataclass(frozen=True)
class Job:
    """One thing to do: a run (or the base model) and what is asked of it."""

    folder: Path
    evaluation: str
    label: str
    steps: int  # 0 for the base model and its rivals
    needs_gpu: bool

    @property
    def eval_folder(self) -> Path:
        return self.folder / EVAL_FOLDER / self.evaluation

    @property
    def trained(self) -> bool:
        return self.steps == 0 or (self.folder / TRAINED).is_file()

    @property
    def done(self) -> bool:
        return self.trained and (self.eval_folder / EVALUATED).is_file()

    @property
    def failure(self) -> dict[str, Any]:
        return failure(self.folder, self.evaluation)

    @property
    def state(self) -> str:
        if self.done:
            return "done"
        if self.failure:
            return "failed"
        return "trained" if self.trained and self.steps else "to do"


class Pace(NamedTuple):
    """What finished runs took: seconds a unit trained (NaN: not known), and for one evaluation
    (0: not known)."""

    training: float
    asking: float

    def left(self, job: Job, size: float) -> float:
        """Seconds of what is left to do of a run that trains `size` units."""
        if job.done:
            return 0.0
        return (0.0 if job.trained else size * self.training) + self.asking


def pace(folders: Sequence[Path], size: Callable[[dict[str, Any]], float | None]) -> Pace:
    """What the runs in these folders took, those that were done in one piece: another does not say
    it. `size` reads off `run.json` how many units a run trains."""
    asked = [facts_in(path, EVALUATED) for folder in folders for path in folder.glob("eval/*")]
    asking = [took["seconds"] for took in asked if took]
    trained = [(folder, facts_in(folder, TRAINED).get("seconds")) for folder in folders]
    sizes = [(size(facts_in(folder, RUN)), seconds) for folder, seconds in trained if seconds]
    whole = [(units, seconds) for units, seconds in sizes if units]
    units, seconds = map(sum, zip(*whole, strict=True)) if whole else (1, math.nan)
    return Pace(seconds / units, sum(asking) / max(1, len(asking)))


# --- what a run is --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What a mixture holds. Tokens are None where no tokenizer is at hand."""

    hash: str
    rows: int  # entries, copies included
    task_rows: int  # distinct
    copies: int
    general_rows: int
    tokens: int | None
    task_tokens: int | None  # of the distinct task rows
    general_tokens: int | None
    overlapping: int | None  # None where it was not checked


@dataclass(frozen=True)
class Evaluation:
    """What is asked of one model.

    `dataset` names the task with the anchor of the test and the general card whose held-out rows
    are measured; `eval` gets a recipe with it.
    """

    dataset: str
    anchor: str
    options: dict[str, Any]

    @property
    def card(self) -> str:
        return parse_spec(self.dataset).card

    @property
    def id(self) -> str:
        rows = self.options["rows"]
        name = f"{self.options['split']}-{self.options['decoding']}"
        return f"{name}{f'-{rows}rows' if rows else ''}-{_hash([self.dataset, self.options])[:8]}"


@dataclass(frozen=True, kw_only=True)
class PlannedBase:
    """A model before training, asked what the runs are asked.

    Attributes:
        root: the sweep's folder.
        at: what tells it from other base models of the sweep.
        steps: optimizer steps; a rival takes none.
        rival: what answers in place of a trained model.
        trained_tokens: of all entries that some step holds, every epoch; None where not counted.
        exposure: of the task rows, in rows at full rate; None without any.
    """

    recipe: Recipe
    evaluation: Evaluation
    root: Path = Path()
    at: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    rival: str = ""
    trained_tokens: int | None = 0
    exposure: float | None = None

    @property
    def asked(self) -> str:
        """The dataset string that `eval` gets."""
        return self.evaluation.dataset

    @property
    def needs_gpu(self) -> bool:
        return not self.recipe.values.get("use_cpu")

    @property
    def model(self) -> dict[str, Any]:
        """What decides which model answers, and how a prompt reaches it."""
        without = ("external_plugins", *(() if self.needs_gpu else _OF_A_GPU))
        given = {key: self.recipe.get(key) for key in MODEL_KEYS if key not in without}
        return {key: v for key, v in given.items() if v is not None or key in _ALWAYS}

    @property
    def id(self) -> str:
        return _hash([_FORMAT, BASE, self.model])[:12]

    @property
    def name(self) -> str:
        """What its folder is called."""
        return _slug(f"{BASE}-{Path(str(self.recipe.get('model'))).name}") + f"-{self.id}"

    @property
    def label(self) -> str:
        rest = [f", {key}={value}" for key, value in self.at.items() if key != "card"]
        return f"base model ({self.evaluation.card}{''.join(rest)})"

    @cached_property
    def job(self) -> Job:
        """What there is to do; in the folder that is there already, whatever it is called."""
        runs = self.root.absolute() / "runs"
        found = sorted(runs.glob(f"*-{self.id}")) if runs.is_dir() else []
        folder = found[0] if found else runs / self.name
        return Job(folder, self.evaluation.id, self.label, self.steps, self.needs_gpu)

    def describe(self) -> dict[str, Any]:
        """What it is, without a path of this machine."""
        return {"format": 1, "id": self.id, "base": True, "model": self.recipe.get("model")}


@dataclass(frozen=True, kw_only=True)
class Planned(PlannedBase):
    """One run, ready to be done.

    Attributes:
        base: the model that it was trained from.
        leaked: rows asked whose question is among the general rows.
        equal_steps: the id of the run whose steps it must take.
    """

    cell: Cell
    spec: Spec
    facts: Facts
    plan: Plan
    base: PlannedBase
    leaked: int | None = None
    equal_steps: str | None = None

    @property
    def label(self) -> str:
        return self.cell.label

    @property
    def is_no_op(self) -> bool:
        """Whether it trains, and every step has learning rate 0."""
        return not self.rival and self.plan.is_no_op

    @property
    def asked(self) -> str:
        """A rival learns from the rows of the string."""
        if self.rival:
            return str(self.spec.with_values(anchor=self.evaluation.anchor))
        return self.evaluation.dataset

    @property
    def id(self) -> str:
        if self.rival:
            return _hash([_FORMAT, self.rival, self.base.model, self.facts.hash])[:12]
        values = {key: value for key, value in self.recipe.values.items() if key not in _FREE}
        world = self.plan.training.world  # several processes take other steps from the same rows
        several = [] if world == 1 else [f"{world} processes"]
        held = [f"kl {self.spec.kl:g}"] if self.spec.kl else []  # the same rows, another loss
        return _hash([_FORMAT, values, self.facts.hash, *several, *held])[:12]

    @property
    def name(self) -> str:
        general = self.rival or self.spec.general or ""
        parts = [self.spec.card, self.spec.task, general, self.cell.seed]
        return _slug("-".join(str(part) for part in parts if str(part))) + f"-{self.id}"

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "base": False,
            "spec": str(self.spec),
            "seed": self.cell.seed,
            "settings": {k: v for k, v in self.recipe.values.items() if k not in _FREE[:3]},
            "mixture": asdict(self.facts),
            **({"rival": self.rival} if self.rival else {}),
            "trained_tokens": self.trained_tokens,
            "planned": {
                "steps": self.steps,
                "warmup_steps": self.plan.warmup_steps,
                "rows_per_step": self.plan.training.rows_per_step,
                "no_op": self.is_no_op,
                "exposure": None if self.exposure is None else round(self.exposure, 3),
                "leaked": self.leaked,
            },
        }


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text)[:80]


def prepare(run: PlannedBase) -> Job:
    """Write what is needed to do a run; nothing of a finished step is touched."""
    job = run.job
    values = {**run.recipe.values, "output_dir": str(job.folder / TRAIN_FOLDER)}
    values["add_version"] = False
    if not job.trained:
        _write_recipe(job.folder, values, run.root)
    if not (job.folder / RUN).is_file():
        write_json(job.folder / RUN, run.describe())
    if not job.done:
        _write_recipe(job.eval_folder, {**values, "dataset": [run.asked]}, run.root)
        options = {**run.evaluation.options, "anchor": run.evaluation.anchor}
        if run.rival:  # no language model, so it is asked nothing general
            options |= {"rival": run.rival, "general_rows": 0, "retention_rows": None}
        write_json(job.eval_folder / OPTIONS, options)
    return job


def _write_recipe(folder: Path, values: dict[str, Any], root: Path) -> None:
    cards = root.absolute() / "cards"
    header = f"# Written by ./run.sh sweep. By hand it needs TELL_CARDS={cards}\n"
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
    paths.write_text(folder / RECIPE, header + text)


# --- what is there already ------------------------------------------------------------------------


def other_answers(runs: Iterable[PlannedBase]) -> Iterator[UserError]:
    """Evaluations whose answers are to other prompts than those of now, or of another length.

    An evaluation is known by the names of card, split and anchor; here is seen whether what they
    stand for has changed since: the test rows, the anchor's text, the held-out general rows, the
    card's `max_new_tokens`.
    """
    now: dict[str, dict[str, dict[str, Any]]] = {}
    stale: dict[str, list[Path]] = defaultdict(list)
    for run in runs:
        folder, name = run.job.eval_folder, run.evaluation.id
        if folder.is_dir():
            now[name] = now.get(name) or _asked_now(run.evaluation)
            if not _answers(folder, now[name]):
                stale[name].append(folder)
    for name, folders in stale.items():
        more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
        yield UserError(
            "the answers are to other prompts, or of another length: test rows, anchor, held-out "
            "general rows or max_new_tokens have changed since",
            where=paths.shown(folders[0]) + more,
            remedy=f"remove {paths.shown(folders[0].parents[2])}/*/eval/{name}, or name another "
            "folder with --out",
        )


def _asked_now(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """What `eval` would save in its settings now: of the task, and of what it asks besides.

    Raises UserError where the card has fewer rows than are asked.
    """
    spec, options = parse_spec(evaluation.dataset), evaluation.options
    card, split = load_card(spec.card), options["split"]
    _, task = prompting.task_prompts(card, split, evaluation.anchor, options["rows"])
    limit = prompting.answer_limit(card, options["max_new_tokens"])
    found = {split: {"prompts_sha256": prompting.prompts_sha256(task), "max_new_tokens": limit}}
    if options["general_rows"]:
        questions = elsewhere.foreign(options["retention_rows"]).questions
        held_out = prompting.general_rows([spec], card, options["general_rows"])
        found[GENERAL] = {
            "prompts_sha256": prompting.prompts_sha256(questions),
            "rows_sha256": prompting.pairs_sha256(held_out),
        }
    return found


def _answers(folder: Path, now: dict[str, dict[str, Any]]) -> bool:
    """Whether all answers of an evaluation are as they would be asked for now."""
    saved = (saved_settings(path.parent, AGAIN) for path in folder.glob(f"*/*/{SETTINGS}"))
    return all(
        found.split in now
        and all(getattr(found, key) in ("", value) for key, value in now[found.split].items())
        for found in saved
        if found is not None
    )
