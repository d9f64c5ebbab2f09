"""Reading what sweeps left behind: a sweep's folder, or what `--collect` kept of it.

Both have the same layout; a collected file may be compressed (`.xz`, `.gz`). Kept are settings,
manifests, what the trainer logged and said, every saved answer and loss, and the right labels of
the rows answered; not adapters, optimizer states, logs and data. What a test row's
right answer is comes from `references/` where it was collected, else from the card's data. A
finished run says itself how many rows it was asked: what was damaged since, or edited, is refused.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.state_files import Name, Shape, read_json, read_text
from tell_plugins.evaluation import elsewhere
from tell_plugins.evaluation.answers import ANSWERS, GENERAL, SETTINGS, Saved, read_saved
from tell_plugins.evaluation.elsewhere import LOSSES, SUM_FILES
from tell_plugins.evaluation.paper_numbers import Published, published
from tell_plugins.evaluation.scoring import System, references, system_of
from tell_plugins.experiments.planning import BASE_METHOD, SweepPlan
from tell_plugins.experiments.store import (
    EVAL_FOLDER,
    EVALUATED,
    FAILED,
    RUN,
    TRAINED,
    Run,
    facts_in,
    failure,
)
from tell_plugins.experiments.sweep import Plot

REFERENCES = "references"
_DAMAGED = "restore the file, or remove the evaluation's folder and start the sweep again"


class Entry(Shape):
    """One run as a sweep's index names it, what was asked of it, and what it answered.

    Attributes:
        run: the name of its folder.
        base: that of the model that it was trained from.
    """

    run: Name
    evaluation: Name
    card: Name
    method: str = BASE_METHOD
    at: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    equal_steps: str | None = None
    base: str | None = None
    _root: Path = Path()

    @property
    def point(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.at.items())

    @property
    def name(self) -> str:
        return f"{self.method} ({self.point})" if self.point else self.method

    @property
    def folder(self) -> Path:
        return self._root / "runs" / self.run

    @property
    def eval_folder(self) -> Path:
        return self.folder / EVAL_FOLDER / self.evaluation

    @property
    def done(self) -> bool:
        return (self.eval_folder / EVALUATED).is_file()

    @property
    def failure(self) -> dict[str, Any]:
        return failure(self.folder, self.evaluation)

    @cached_property
    def facts(self) -> dict[str, Any]:
        return facts_in(self.folder, RUN)

    @cached_property
    def trained(self) -> dict[str, Any]:
        """What its training left; nothing for a base model and where it is not done."""
        return facts_in(self.folder, TRAINED)

    @property
    def is_base(self) -> bool:
        return bool(self.facts.get("base"))

    @property
    def steps(self) -> int | None:
        return 0 if self.is_base else self.trained.get("steps")

    @property
    def no_op(self) -> bool:
        """Whether the run trained nothing: all its B matrices are zero."""
        return bool(self.trained.get("changes_nothing"))

    def planned(self, name: str) -> Any:
        """`exposure`: task rows at full learning rate that the run saw, None without any.
        `leaked`: rows asked whose question is among its general rows. None: not known."""
        return self.facts.get("planned", {}).get(name)

    def amount(self, name: str) -> Any:
        """What its mixture's manifest counts, such as `task_tokens`; None for a base model."""
        return (self.facts.get("mixture") or {}).get(name)

    @cached_property
    def saved(self) -> list[Saved]:
        """Every set of answers."""
        files = sorted(self.eval_folder.glob(f"*/*/{SETTINGS}"))
        return [read_saved(path.parent, _DAMAGED) for path in files]

    @property
    def task(self) -> list[Saved]:
        """The answers to the task, a set a decoding seed."""
        return [saved for saved in self.saved if saved.settings.split != GENERAL]

    @cached_property
    def general(self) -> list[elsewhere.Run]:
        """What was measured elsewhere: once, where anything was."""
        found = [saved.folder for saved in self.saved if saved.settings.split == GENERAL]
        return [elsewhere.read(folder, remedy=_DAMAGED) for folder in found]


class _Asked(Shape):
    split: Name
    decoding: str = "greedy"
    rows: int | None = None
    general_rows: int | None = None


class Study(Shape):
    """A sweep's index, `sweeps/<name>.json`: its entries, and the models that they were trained
    from, which are entries too and come first in what `load_studies` gives."""

    name: Name
    title: str
    metric: str
    seeds: list[int | None]
    evaluate: _Asked
    plot: Plot
    entries: list[Entry]
    bases: list[Entry]
    command: str = ""

    @cached_property
    def done(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.done]

    @property
    def split(self) -> str:
        """The split of the card whose rows are scored."""
        return self.evaluate.split

    @property
    def published(self) -> Published | None:
        """The paper's numbers that belong to it; they are of test rows."""
        return published(self.plot.paper, self.name) if self.split == "test" else None

    @property
    def axis(self) -> str | None:
        """What the curves run along; rows in place of tokens where none were counted."""
        axis: str | None = self.plot.x
        if axis is None or any(entry.amount(axis) is not None for entry in self.entries):
            return axis
        return axis.replace("_tokens", "_rows")

    def series_of(self, entry: Entry) -> str:
        """The curve of an entry: its method, and what else varies beside the axis."""
        own = (self.axis or "").partition("_")[0]  # the key of the dataset string behind the axis
        rest = [f"{key}={value}" for key, value in entry.at.items() if key != own]
        return entry.method + (f" ({', '.join(rest)})" if rest and self.axis else "")

    def base_of(self, entry: Entry) -> Entry | None:
        """The model that an entry was trained from, asked about the same card."""
        bases = (e for e in self.done if e.is_base and e.card == entry.card)
        return next((e for e in bases if entry.base in (None, e.run)), None)


def index_file(root: Path, study: Study) -> Path:
    """Where a study is kept."""
    return root / "sweeps" / f"{study.name}.json"


def load_studies(root: Path) -> list[Study]:
    """The sweeps of a folder. Raises UserError when it holds none."""
    files = sorted((root / "sweeps").glob("*.json"))
    if not files:
        raise UserError(
            "no sweep here",
            where=paths.shown(root),
            allowed="the folder of ./run.sh sweep (output/sweeps), or one below results/",
            remedy="./run.sh sweep FILE, then ./run.sh report DIR",
        )
    remedy = "restore the file, or call the sweep again, which writes it"
    return [read_study(root, path, remedy) for path in files]


def systems_of(study: Study) -> list[System]:
    """The answers of a study's entries as `eval` scores them, set against the first entry's."""
    base = study.entries[0].task[0].folder.parent / GENERAL
    return [system_of(entry.method, entry.task[0].folder, base) for entry in study.entries]


def read_study(root: Path, path: Path, remedy: str) -> Study:
    """The sweep of an index. Raises UserError, with `remedy`, for a file that is none."""
    study = Study(**read_json(path, Study, remedy))
    entries = [*study.bases, *study.entries]
    for entry in entries:
        entry._root = root
    return study.model_copy(update={"entries": entries})


def study_of(plan: SweepPlan, command: str) -> Study:
    """What is kept of a sweep for its report: which run each of its entries is."""
    sweep = plan.sweep
    return Study(
        name=sweep.name,
        title=sweep.title,
        command=command,
        metric=str(load_card(plan.entries[0].asked.card).metric),
        seeds=list(sweep.seeds),
        evaluate=_Asked(**sweep.evaluate.model_dump(mode="json")),
        plot=sweep.plot,
        entries=[_entry(run) for run in plan.entries],
        bases=[_entry(base) for base in plan.bases],
    )


def _entry(run: Run) -> Entry:
    return Entry(
        run=run.folder.name,
        evaluation=run.evaluation,
        card=run.asked.card,
        method=run.cell.method,
        at=run.cell.at,
        seed=run.cell.seed if run.base else None,
        equal_steps=run.equal_steps.folder.name if run.equal_steps else None,
        base=run.base.folder.name if run.base else None,
    )


def tell_left_out(root: Path, now: Study) -> None:
    """Say so where an earlier sweep of this name in `root` has finished runs that this one has not.

    They stay where they are, and the earlier sweep file finds them again.
    """
    path = index_file(root, now)
    if not path.is_file():
        return
    then = read_study(root, path, "remove the file: the sweep writes it again")
    kept = {entry.run for entry in now.entries}
    lost = [entry.name for entry in then.done if entry.base and entry.run not in kept]
    if lost:
        print(
            f"note: {paths.shown(path)} is of a sweep with {len(lost)} finished runs that are not "
            f"this sweep's, such as {lost[0]}; its report will leave them out"
        )


# --- damage ---------------------------------------------------------------------------------------


def refuse_damaged(studies: Sequence[Study]) -> None:
    """Raise UserError where a finished run is not what it says."""
    for study in studies:
        for entry in study.done:
            for found, where in _damage(entry, bool(study.evaluate.general_rows)):
                raise UserError(found, where=where, remedy=_DAMAGED)


def _damage(entry: Entry, asks_general: bool) -> Iterator[tuple[str, str]]:
    """What is wrong, and where; what cannot be read raises."""
    for name in (RUN,) if entry.is_base else (RUN, TRAINED):
        if not (entry.folder / name).is_file():
            yield "the file is missing", paths.shown(entry.folder / name)
    measured = any(run.answers and run.sums[LOSSES] for run in entry.general)
    if not entry.task or (asks_general and not entry.facts.get("rival") and not measured):
        missing = "general questions" if entry.task else "the task"
        said = f"the run is finished, but its answers to {missing} are not here"
        yield said, paths.shown(entry.eval_folder)
    for saved in entry.saved:
        answered = {(line.row, line.attempt) for line in saved.answers}
        if twice := len(saved.answers) - len(answered):
            yield f"{twice} answers stand twice", saved.where
        rows, asked = len({row for row, _ in answered}), saved.settings.rows
        if asked not in (None, rows):
            said = f"{rows} rows, but {asked} were asked: lines are missing, or too many"
            yield said, saved.where
    entry.trained  # noqa: B018 - what is not whole raises


# --- what of a sweep's folder is kept for good: enough to rebuild the report ----------------------

_LOG = "train/logging.jsonl"
_RUN_FILES = (RUN, TRAINED, FAILED, "train/manifest.json", _LOG)
_EVAL_FILES = (EVALUATED, FAILED)
_ANSWER_FILES = (SETTINGS, "scores.json", ANSWERS, *SUM_FILES)


def collect(root: Path, target: Path) -> list[Path]:
    """Copy what is kept of `root` into `target` and return the files written.

    Unfinished runs are left out, failed ones keep what is known of their failure. Raises
    UserError when `target` is `root`.
    """
    studies = load_studies(root)
    if target.resolve() == root.resolve():
        raise UserError(
            "--collect names the folder itself",
            where=paths.shown(target),
            remedy="name another, such as results/NAME",
        )
    refuse_damaged(studies)
    kept: dict[Path, Path] = {}
    asked: dict[tuple[str, str], None] = {}
    for study in studies:
        tell_left_out(target, study)
        kept[index_file(target, study)] = index_file(root, study)
        for entry in study.entries:
            if entry.done or entry.failure:
                kept |= {target / path.relative_to(root): path for path in _files(entry)}
            kept |= {target / "cards" / path: file for path, file in _card_files(entry.card)}
            of_task = entry.task if entry.done else []
            asked |= dict.fromkeys((entry.card, answers.settings.split) for answers in of_task)
    texts = {path: read_text(source) for path, source in kept.items()}
    for card, split in asked:
        known = references(root / REFERENCES, card, split).model_dump()
        texts[target / REFERENCES / f"{card}-{split}.json"] = json.dumps(known, indent=1) + "\n"
    return [_write(path, text) for path, text in texts.items() if text is not None]


def _files(entry: Entry) -> Iterator[Path]:
    """What may be there of a run and of what was asked of it."""
    yield from (entry.folder / name for name in _RUN_FILES)
    yield from (entry.eval_folder / name for name in _EVAL_FILES)
    for settings in sorted(entry.eval_folder.glob(f"*/*/{SETTINGS}")):
        yield from (settings.parent / name for name in _ANSWER_FILES)


def _card_files(name: str) -> Iterator[tuple[Path, Path]]:
    """Of a task card that is not the project's own: card, anchors and schema, no rows."""
    card = load_card(name)
    if card.folder.resolve().is_relative_to(paths.CARDS.resolve()):
        return
    schema = card.answer.schema_file if card.answer else None
    for path in sorted(card.folder.iterdir()):
        if path.suffix in (".yaml", ".txt") or path.name == schema:
            yield Path(name) / path.name, path


def _write(path: Path, text: str) -> Path:
    """Keep a text without the paths of this machine, lines of JSON compressed; the same text gives
    the same bytes, and what is there already is left as it is."""
    packed = path.suffix == ".jsonl"
    if path.name == Path(_LOG).name:  # the last line repeats all others and names paths
        lines = [line for line in text.split("\n") if line and '"log_history"' not in line]
        text = "".join(f"{line}\n" for line in lines)
    elif not packed:
        text = text.replace(f"{paths.PROJECT}/", "")
    file = path.with_name(f"{path.name}.xz") if packed else path
    if read_text(path) != text:
        content = text.encode()
        if packed:
            content = lzma.compress(content, preset=9, check=lzma.CHECK_CRC32)
        with paths.atomic_path(file) as temporary:
            temporary.write_bytes(content)
    return file
