"""The folder of one or more sweeps: runs side by side, each once, and who asked for them.

    DIR/runs/<name>-<id>/     one run: recipe, log, what ms-swift wrote, answers, markers
    DIR/sweeps/<name>.json    one sweep: its settings and which run each of its entries is
    DIR/cards/                general cards that were made for the runs

A marker (`trained.json`, `evaluated.json`) is written last and in one piece: where it is, the step
is done and never repeated; where it is not, the step is done again or goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.spec import parse_spec
from tell_plugins.core.state_files import Name, Shape, read_json, write_json
from tell_plugins.evaluation import elsewhere
from tell_plugins.evaluation import prompts as prompting
from tell_plugins.evaluation.answers import GENERAL, SETTINGS, saved_settings
from tell_plugins.experiments.planning import Asked, Evaluation, Planned, PlannedBase, SweepPlan

RUN, TRAINED, EVALUATED, FAILED = "run.json", "trained.json", "evaluated.json", "failed.json"
RECIPE, OPTIONS = "recipe.yaml", "options.json"
TRAIN_LOG, EVAL_LOG = "train.log", "eval.log"
TRAIN_FOLDER, EVAL_FOLDER = "train", "eval"
AGAIN = "restore the file, or remove the run's folder and start the sweep again"
_PATHS = ("output_dir", "add_version", "dataset")


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


class Store:
    """A sweep's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.cards, self.runs = self.root / "cards", self.root / "runs"

    def folder_of(self, run: Asked) -> Path:
        """The folder of a run; the one that is there already, whatever it is called."""
        found = sorted(self.runs.glob(f"*-{run.id}")) if self.runs.is_dir() else []
        return found[0] if found else self.runs / run.folder

    def job(self, run: Asked) -> Job:
        return Job(self.folder_of(run), run.evaluation.id, run.label, run.steps, run.needs_gpu)

    def prepare(self, run: Asked) -> Job:
        """Write what the run's worker reads; nothing of a finished step is touched."""
        job = self.job(run)
        values = dict(run.recipe.values)
        values |= {"output_dir": str(job.folder / TRAIN_FOLDER), "add_version": False}
        if isinstance(run, Planned) and not job.trained:
            self._write_recipe(job.folder, values)
        if not (job.folder / RUN).is_file():
            write_json(job.folder / RUN, describe(run))
        if not job.done:
            self._write_recipe(job.eval_folder, {**values, "dataset": [run.asked]})
            options = {**run.evaluation.options, "anchor": run.evaluation.anchor}
            if run.rival:  # no language model, so it is asked nothing general
                options |= {"rival": run.rival, "general_rows": 0, "retention_rows": None}
            write_json(job.eval_folder / OPTIONS, options)
        return job

    def _write_recipe(self, folder: Path, values: dict[str, Any]) -> None:
        header = f"# Written by ./run.sh sweep. By hand it needs TELL_CARDS={self.cards}\n"
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
        paths.write_text(folder / RECIPE, header + text)


def other_answers(plan: SweepPlan, store: Store) -> Iterator[UserError]:
    """Evaluations whose answers are to other prompts than those of now, or of another length.

    An evaluation is known by the names of card, split and anchor; here is seen whether what they
    stand for has changed since: the test rows, the anchor's text, the held-out general rows, the
    card's `max_new_tokens`.
    """
    now: dict[str, dict[bool, dict[str, Any]]] = {}
    stale: dict[str, list[Path]] = {}
    for run in plan.everything:
        folder, name = store.job(run).eval_folder, run.evaluation.id
        if not folder.is_dir():
            continue
        if name not in now:
            now[name] = asked_now(run.evaluation)
        if not _answers(folder, now[name]):
            stale.setdefault(name, []).append(folder)
    for name, folders in stale.items():
        more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
        yield UserError(
            "the answers are to other prompts, or of another length: test rows, anchor, held-out "
            "general rows or max_new_tokens have changed since",
            where=paths.shown(folders[0]) + more,
            remedy=f"remove {paths.shown(store.runs)}/*/eval/{name}, or name another folder "
            "with --out",
        )


def asked_now(evaluation: Evaluation) -> dict[bool, dict[str, Any]]:
    """What `eval` would save in its settings now, of the task and, under True, of general
    questions, where these are asked.

    Raises UserError where the card has fewer rows than are asked.
    """
    spec, options = parse_spec(evaluation.dataset), evaluation.options
    card = load_card(spec.card)
    _, task = prompting.task_prompts(card, options["split"], evaluation.anchor, options["rows"])
    of_task = {
        "prompts_sha256": prompting.prompts_sha256(task),
        "max_new_tokens": prompting.answer_limit(card, options["max_new_tokens"]),
    }
    if not options["general_rows"]:
        return {False: of_task}
    questions = elsewhere.foreign(options["retention_rows"]).questions
    held_out = prompting.general_rows([spec], card, options["general_rows"])
    of_general = {
        "prompts_sha256": prompting.prompts_sha256(questions),
        "rows_sha256": prompting.pairs_sha256(held_out),
    }
    return {False: of_task, True: of_general}


def _answers(folder: Path, now: Mapping[bool, Mapping[str, Any]]) -> bool:
    """Whether all answers of an evaluation are as they would be asked for now."""
    found = (saved_settings(path.parent, AGAIN) for path in folder.glob(f"*/*/{SETTINGS}"))
    return all(
        (wanted := now.get(saved.split == GENERAL)) is not None
        and all(getattr(saved, key) in ("", value) for key, value in wanted.items())
        for saved in found
        if saved is not None
    )


def describe(run: Asked) -> dict[str, Any]:
    """What a run is, without a path of this machine."""
    found = {"format": 1, "id": run.id, "base": True, "model": run.recipe.get("model")}
    if isinstance(run, PlannedBase):
        return found
    return {
        **found,
        "base": False,
        "spec": str(run.spec),
        "seed": run.cell.seed,
        "settings": {k: value for k, value in run.recipe.values.items() if k not in _PATHS},
        "mixture": asdict(run.facts),
        **({"rival": run.rival} if run.rival else {}),
        "trained_tokens": run.trained_tokens,
        "planned": {
            "steps": run.steps,
            "warmup_steps": run.plan.warmup_steps,
            "rows_per_step": run.plan.training.rows_per_step,
            "no_op": run.is_no_op,
            "exposure": None if run.exposure is None else round(run.exposure, 3),
            "leaked": run.leaked,
        },
    }
