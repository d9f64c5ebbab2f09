"""The folder of one or more sweeps: runs side by side, each once, and who asked for them.

    DIR/runs/<name>-<id>/     one run: recipe, log, what ms-swift wrote, answers, markers
    DIR/sweeps/<name>.json    one sweep: its settings and which run each of its entries is
    DIR/cards/                general cards that were made for the runs

A marker (`trained.json`, `evaluated.json`) is written last and in one piece: where it is, the step
is done and never repeated; where it is not, the step is done again or goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.files import read_json, write_json
from tell_plugins.core.spec import parse_spec
from tell_plugins.experiments.planning import Planned, PlannedBase, SweepPlan, values_text
from tell_plugins.experiments.records import AGAIN, Failed

RUN, TRAINED, EVALUATED, FAILED = "run.json", "trained.json", "evaluated.json", "failed.json"
RECIPE, OPTIONS = "recipe.yaml", "options.json"
TRAIN_LOG, EVAL_LOG = "train.log", "eval.log"
TRAIN_FOLDER, EVAL_FOLDER = "train", "eval"
_PATHS = ("output_dir", "add_version", "dataset")


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
    def trains(self) -> bool:
        return self.steps > 0

    @property
    def trained(self) -> bool:
        return not self.trains or (self.folder / TRAINED).is_file()

    @property
    def done(self) -> bool:
        return self.trained and (self.eval_folder / EVALUATED).is_file()

    @property
    def failure(self) -> dict[str, Any] | None:
        """What is known of a failed attempt, of this run's training or of this evaluation."""
        for folder in (self.folder, self.eval_folder):
            found: dict[str, Any] | None = read_json(folder / FAILED, Failed, AGAIN)
            if found is not None:
                return found
        return None

    @property
    def state(self) -> str:
        if self.done:
            return "done"
        if self.failure:
            return "failed"
        return "trained" if self.trained and self.trains else "to do"


class Store:
    """A sweep's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def cards(self) -> Path:
        return self.root / "cards"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def sweeps(self) -> Path:
        return self.root / "sweeps"

    def folder_of(self, run: Planned | PlannedBase) -> Path:
        """The folder of a run; the one that is there already, whatever it is called."""
        found = sorted(self.runs.glob(f"*-{run.id}")) if self.runs.is_dir() else []
        return found[0] if found else self.runs / run.folder

    def job(self, run: Planned | PlannedBase) -> Job:
        return Job(
            folder=self.folder_of(run),
            evaluation=run.evaluation.id,
            label=run.label if isinstance(run, PlannedBase) else run.cell.label,
            steps=run.steps,
            needs_gpu=run.needs_gpu,
        )

    @property
    def _header(self) -> str:
        return f"# Written by ./run.sh sweep. By hand it needs TELL_CARDS={self.cards}\n"

    def prepare(self, run: Planned | PlannedBase) -> Job:
        """Write what the run's worker reads; nothing of a finished step is touched."""
        job = self.job(run)
        values = dict(run.recipe.values)
        output = {"output_dir": str(job.folder / TRAIN_FOLDER), "add_version": False}
        if isinstance(run, Planned) and not job.trained:
            text = values_text({**values, **output})
            paths.write_text(job.folder / RECIPE, self._header + text)
        if not (job.folder / RUN).is_file():
            write_json(job.folder / RUN, describe(run))
        if not job.done:
            asked = {**values, **output, "dataset": [run.asked]}
            paths.write_text(job.eval_folder / RECIPE, self._header + values_text(asked))
            options = {**run.evaluation.options, "anchor": run.evaluation.anchor}
            options |= {"rival": run.rival, "general_rows": 0} if run.rival else {}
            write_json(job.eval_folder / OPTIONS, options)
        return job

    def index(self, plan: SweepPlan, command: str) -> dict[str, Any]:
        """Which run each entry of a sweep is, for the report."""
        sweep = plan.sweep
        first = plan.entries[0].evaluation if plan.entries else None
        card = load_card(parse_spec(first.dataset).card) if first else None
        return {
            "format": 1,
            "name": sweep.name,
            "title": sweep.title,
            "base_recipe": paths.shown(paths.user_path(sweep.base)),
            "command": command,
            "metric": card.metric if card else None,
            "grid": list(sweep.grid),
            "seeds": list(sweep.seeds),
            "evaluate": sweep.evaluate.model_dump(mode="json"),
            "plot": sweep.plot.model_dump(mode="json"),
            "entries": [
                {
                    "method": entry.cell.method,
                    "at": entry.cell.at,
                    "seed": entry.cell.seed,
                    "run": self.folder_of(entry).name,
                    "evaluation": entry.evaluation.id,
                    "card": parse_spec(entry.evaluation.dataset).card,
                    "equal_steps": self._other(plan, entry.equal_steps),
                    "base": self.folder_of(entry.base).name,
                }
                for entry in plan.entries
            ],
            "bases": [
                {
                    "at": base.at,
                    "run": self.folder_of(base).name,
                    "evaluation": base.evaluation.id,
                    "card": base.card,
                }
                for base in plan.bases
            ],
        }

    def write_index(self, index: Mapping[str, Any]) -> None:
        """Keep an index; one of an earlier call of the same sweep is replaced."""
        write_json(self.sweeps / f"{index['name']}.json", index)

    def _other(self, plan: SweepPlan, run_id: str | None) -> str | None:
        if run_id is None:
            return None
        return next(self.folder_of(e).name for e in plan.entries if e.id == run_id)


def describe(run: Planned | PlannedBase) -> dict[str, Any]:
    """What a run is, without a path of this machine."""
    values = {key: value for key, value in run.recipe.values.items() if key not in _PATHS}
    if isinstance(run, PlannedBase):
        return {"format": 1, "id": run.id, "base": True, "model": run.recipe.get("model")}
    return {
        "format": 1,
        "id": run.id,
        "base": False,
        "model": run.recipe.get("model"),
        "spec": str(run.spec),
        "seed": run.cell.seed,
        "settings": values,
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
