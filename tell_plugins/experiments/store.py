"""Runs, and where they lie: in the folder of one or more sweeps, side by side, each once.

    DIR/runs/<name>-<id>/     one run: recipe, log, what ms-swift wrote, answers, markers
    DIR/sweeps/<name>.json    one sweep: its settings and which run each of its entries is
    DIR/cards/                cards that were made for the runs

A marker (`trained.json`, `evaluated.json`) is written last and in one piece: where it is, the step
is done and never repeated; where it is not, the step is done again or goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.spec import Spec, parse_spec
from tell_plugins.core.state_files import Name, Shape, read_json, write_json
from tell_plugins.experiments.sweep import Cell
from tell_plugins.recipe.recipes import Recipe

RUN, TRAINED, EVALUATED, FAILED = "run.json", "trained.json", "evaluated.json", "failed.json"
RECIPE, TRAIN_FOLDER, EVAL_FOLDER = "recipe.yaml", "train", "eval"
AGAIN = "restore the file, or remove the run's folder and start the sweep again"


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
class Facts:
    """What a mixture holds. Tokens are None where no tokenizer is at hand."""

    hash: str = ""
    rows: int = 0  # entries, copies included
    task_rows: int = 0  # distinct
    copies: int = 1
    general_rows: int = 0
    tokens: int | None = None
    task_tokens: int | None = None  # of the distinct task rows
    general_tokens: int | None = None
    overlapping: int | None = None  # None where it was not checked


@dataclass(frozen=True)
class Asked:
    """What is asked of one model.

    Attributes:
        dataset: names the task with the anchor of the test, and the general card whose held-out
            rows are measured; `eval` gets a recipe with it.
        content: a hash of all that these names stand for.
    """

    dataset: str
    anchor: str
    options: dict[str, Any]
    content: str = ""

    @property
    def card(self) -> str:
        return parse_spec(self.dataset).card

    @property
    def id(self) -> str:
        rows = self.options["rows"]
        name = f"{self.options['split']}-{self.options['decoding']}"
        return f"{name}{f'-{rows}rows' if rows else ''}-{hashed([self.dataset, self.options])[:8]}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One thing to do, as it was planned, and what is asked of it: a model that is trained, a rival
    without training, or a base model.

    Attributes:
        evaluation: the id of what is asked; its folder lies in the run's.
        steps: optimizer steps, 0 for a base model and a rival.
        cell: what the sweep file calls it; of a base model `at` is what tells it from others.
        spec: what it is trained on; a rival learns from its rows.
        base: the model that it was trained from; None for a base model.
        about: what it is, without a path of this machine: `run.json`.
        equal_steps: the run whose steps it must take.
    """

    folder: Path
    evaluation: str
    label: str
    steps: int
    needs_gpu: bool
    id: str
    cell: Cell
    recipe: Recipe
    spec: Spec
    asked: Asked
    about: dict[str, Any]
    facts: Facts = Facts()
    base: Run | None = None
    equal_steps: Run | None = None

    @property
    def planned(self) -> dict[str, Any]:
        """What is known of its training before it is done; nothing of a base model."""
        return dict(self.about.get("planned", {}))

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

    def prepare(self) -> Run:
        """Write what is needed to do it; nothing of a finished step is touched."""
        values = {**self.recipe.values, "output_dir": str(self.folder / TRAIN_FOLDER)}
        values["add_version"] = False
        if not self.trained:
            self._write_recipe(self.folder, values)
        if not (self.folder / RUN).is_file():
            write_json(self.folder / RUN, self.about)
        if not self.done:
            dataset = self.asked.dataset
            if self.cell.rival:
                dataset = str(self.spec.with_values(anchor=self.asked.anchor))
            self._write_recipe(self.eval_folder, {**values, "dataset": [dataset]})
        return self

    def _write_recipe(self, folder: Path, values: dict[str, Any]) -> None:
        cards = self.folder.parents[1] / "cards"
        header = f"# Written by ./run.sh sweep. By hand it needs TELL_CARDS={cards}\n"
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
        paths.write_text(folder / RECIPE, header + text)


class Pace(NamedTuple):
    """What finished runs took: seconds a unit trained (NaN: not known), and for one evaluation
    (0: not known)."""

    training: float
    asking: float

    def left(self, run: Run, size: float) -> float:
        """Seconds of what is left to do of a run that trains `size` units."""
        if run.done:
            return 0.0
        return (0.0 if run.trained else size * self.training) + self.asking


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


def hashed(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def other_answers(runs: Iterable[Run]) -> Iterator[UserError]:
    """Finished evaluations that asked something else than is asked now.

    An evaluation is known by the names of card, split and anchor; here is seen whether what they
    stand for has changed since. One that is not finished goes on by `eval`, which sees it itself.
    """
    stale: dict[str, list[Path]] = defaultdict(list)
    for run in runs:
        if run.done:
            saved = facts_in(run.eval_folder, EVALUATED)
            if saved.get("content") not in (None, run.asked.content):
                stale[run.evaluation].append(run.eval_folder)
    for name, folders in stale.items():
        more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
        yield UserError(
            "the answers are to other prompts, or of another length: test rows, anchor, held-out "
            "general rows or max_new_tokens have changed since",
            where=paths.shown(folders[0]) + more,
            remedy=f"remove {paths.shown(folders[0].parents[2])}/*/eval/{name}, or name another "
            "folder with --out",
        )
