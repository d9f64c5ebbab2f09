"""Reading what sweeps left behind: a sweep's folder, or what `--collect` kept of it.

Both have the same layout; a collected file may be compressed (`.xz`, `.gz`). What a test row's
right answer is comes from `references/` where it was collected, else from the card's data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import find, read_json, read_json_lines
from tell_plugins.core.sources import open_task
from tell_plugins.evaluation import retention
from tell_plugins.evaluation.answers import ANSWERS, GENERAL, SETTINGS, AnswerLine, SavedSettings
from tell_plugins.evaluation.bleed import Form, form_of
from tell_plugins.evaluation.retention import FILES
from tell_plugins.experiments.records import (
    AGAIN,
    Failed,
    Index,
    RunFacts,
    SavedReferences,
    Trained,
)
from tell_plugins.experiments.sweep import Plot

REFERENCES = "references"
AS_SAVED = ("translation", "text")  # metrics whose scores are taken as `eval` saved them


@dataclass(frozen=True)
class Answers:
    """One set of saved answers and its settings."""

    folder: Path
    settings: dict[str, Any]
    lines: list[dict[str, Any]]
    scores: dict[str, Any] | None


@dataclass(frozen=True)
class Evaluation:
    """What was asked of one run: its answers to the task, and what it did elsewhere."""

    folder: Path

    @cached_property
    def _all(self) -> list[Answers]:
        found = []
        for path in sorted(self.folder.glob(f"*/*/{SETTINGS}")):
            folder = path.parent
            settings = read_json(path, SavedSettings, AGAIN)
            lines = read_json_lines(folder / ANSWERS, AnswerLine, AGAIN)
            scores = read_json(folder / "scores.json", dict[str, Any], AGAIN)
            found.append(Answers(folder, settings, lines, scores))
        return found

    @property
    def task(self) -> list[Answers]:
        """One set of answers a decoding seed."""
        return [answers for answers in self._all if answers.settings["split"] != GENERAL]

    @cached_property
    def general(self) -> list[dict[str, Any]]:
        return [
            line
            for answers in self._all
            if answers.settings["split"] == GENERAL
            for line in answers.lines
        ]

    @cached_property
    def _sums(self) -> dict[str, list[retention.Sum]]:
        folders = sorted(self.folder.glob("*/general"))
        read = {name: [retention.read(folder, name) for folder in folders] for name in FILES}
        return {name: next(filter(None, found), []) for name, found in read.items()}

    def sums(self, name: str) -> list[retention.Sum]:
        """(sum, tokens) of every row of one of `retention.FILES`."""
        return self._sums[name]


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        return read_json(self.folder / "run.json", RunFacts, AGAIN) or {}

    @cached_property
    def trained(self) -> dict[str, Any] | None:
        if self.is_base:
            return None
        return read_json(self.folder / "trained.json", Trained, AGAIN)  # type: ignore[no-any-return]

    @cached_property
    def logged(self) -> list[dict[str, Any]]:
        """The trainer's records by step; of a step logged twice (after a resume) the last."""
        steps: dict[int, dict[str, Any]] = {}
        path = self.folder / "train" / "logging.jsonl"
        for record in read_json_lines(path, dict[str, Any], AGAIN, foreign=True):
            step, slash, _ = str(record.get("global_step/max_steps", "")).partition("/")
            if "loss" in record and slash and step.isdecimal():
                steps[int(step)] = record
        return [{**record, "step": step} for step, record in sorted(steps.items())]

    @property
    def is_base(self) -> bool:
        return bool(self.facts.get("base"))

    @cached_property
    def _evaluations(self) -> dict[str, Evaluation]:
        return {}

    def evaluation(self, name: str) -> Evaluation:
        """What was asked under this name; read once, however often it is looked at."""
        return self._evaluations.setdefault(name, Evaluation(self.folder / "eval" / name))

    def is_evaluated(self, name: str) -> bool:
        return find(self.folder / "eval" / name / "evaluated.json") is not None

    def failure(self, name: str) -> dict[str, Any] | None:
        for folder in (self.folder, self.folder / "eval" / name):
            found: dict[str, Any] | None = read_json(folder / "failed.json", Failed, AGAIN)
            if found is not None:
                return found
        return None

    @property
    def no_op(self) -> bool:
        """Whether the run trained nothing: all its B matrices are zero."""
        return bool(self.trained and self.trained.get("changes_nothing"))

    @property
    def exposure(self) -> float | None:
        """Task rows at full learning rate that the run saw; None without any, or not known."""
        found = self.facts.get("planned", {}).get("exposure")
        return None if found is None else float(found)

    @property
    def leaked(self) -> int | None:
        """How many rows asked have a question among its general rows; None: not known."""
        return self.facts.get("planned", {}).get("leaked")


@dataclass(frozen=True)
class Entry:
    """One run as a sweep names it."""

    method: str
    at: dict[str, Any]
    seed: int | None
    run: Run
    evaluation: str
    card: str
    equal_steps: str | None = None
    base: str | None = None  # the folder of the model that it was trained from

    @property
    def point(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.at.items())

    @property
    def name(self) -> str:
        return f"{self.method} ({self.point})" if self.point else self.method

    @property
    def done(self) -> bool:
        return self.run.is_evaluated(self.evaluation)

    @property
    def steps(self) -> int | None:
        return 0 if self.run.is_base else (self.run.trained or {}).get("steps")

    @property
    def measured(self) -> Evaluation:
        return self.run.evaluation(self.evaluation)

    def amount(self, name: str) -> float | None:
        """What a plot may have as its x, from the run's mixture."""
        return (self.run.facts.get("mixture") or {}).get(name)


@dataclass(frozen=True)
class Study:
    """One sweep with its entries; the base model first."""

    name: str
    title: str
    index: dict[str, Any]
    entries: list[Entry] = field(default_factory=list)

    @property
    def plot(self) -> Plot:
        return Plot(**self.index["plot"])

    @property
    def done(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.done]

    @property
    def split(self) -> str:
        """The split of the card whose rows are scored."""
        return str(self.index["evaluate"]["split"])

    @property
    def axis(self) -> str | None:
        """What the curves run along; rows in place of tokens where none were counted."""
        axis: str | None = self.plot.x
        if axis is None or not axis.endswith("_tokens"):
            return axis
        counted = any(entry.amount(axis) is not None for entry in self.entries)
        return axis if counted else axis.replace("_tokens", "_rows")

    @property
    def methods(self) -> list[str]:
        """Methods in the order of the sweep, the base model first."""
        return list(dict.fromkeys(entry.method for entry in self.entries))

    @property
    def metric(self) -> str:
        return str(self.index["metric"])

    def base_of(self, entry: Entry) -> Entry | None:
        """The model that an entry was trained from, asked about the same card.

        An index that does not name it is of an earlier release, with one model a card.
        """
        bases = (e for e in self.done if e.run.is_base and e.card == entry.card)
        return next((e for e in bases if entry.base in (None, e.run.folder.name)), None)


BASE_METHOD = "base model"


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
    return [_study(root, _index(path)) for path in files]


def _index(path: Path) -> dict[str, Any]:
    """A sweep's index. Raises UserError for what is none."""
    remedy = "restore the file, or call the sweep again, which writes it"
    return dict(read_json(path, Index, remedy))


def _study(root: Path, index: dict[str, Any]) -> Study:
    def entry(method: str, record: dict[str, Any]) -> Entry:
        return Entry(
            method=method,
            at=record.get("at") or {},
            seed=record.get("seed"),
            run=runs.setdefault(record["run"], Run(root / "runs" / record["run"])),
            evaluation=record["evaluation"],
            card=record["card"],
            equal_steps=record.get("equal_steps"),
            base=record.get("base"),
        )

    runs: dict[str, Run] = {}
    several = len({record["card"] for record in index["bases"]}) > 1
    entries = [
        entry(BASE_METHOD, {"at": {"card": record["card"]} if several else {}, **record})
        for record in index["bases"]
    ]
    entries += [entry(record["method"], record) for record in index["entries"]]
    return Study(index["name"], index["title"], index, entries)


@dataclass(frozen=True)
class References:
    """What is right for the rows of a split, as far as the report needs it.

    Attributes:
        of: row id -> its label or number, or its whole JSON; empty where scores are as saved.
        labels: the possible labels in the schema's order; empty where there are none.
        rows: rows in the split.
        form: how the answers are known where they should not be, see `bleed.Form`.
    """

    card: str
    split: str
    metric: str
    of: dict[str, str]
    labels: list[str]
    rows: int
    form: Form

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ReferenceShelf:
    """References by card and split: collected ones first, else made from the card's data."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[tuple[str, str], References] = {}

    def get(self, card: str, split: str) -> References:
        """UserError when they were not collected and the data is not on this machine."""
        if (card, split) not in self._known:
            remedy = "restore the file, or remove it where the card's data is on this machine"
            path = self._root / REFERENCES / f"{card}-{split}.json"
            saved = read_json(path, SavedReferences, remedy)
            self._known[card, split] = (
                _saved_references(saved, path) if saved is not None else references(card, split)
            )
        return self._known[card, split]

    def all(self) -> Iterator[References]:
        yield from self._known.values()


def _saved_references(saved: Any, path: Path) -> References:
    try:
        saved = {key: value for key, value in saved.items() if key != "opening"}  # earlier releases
        form = saved.pop("form", None)
        if form is None:
            return References(**saved, form=form_of(load_card(saved["card"])))
        lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in form.items()}
        return References(**saved, form=Form(**lists))
    except (TypeError, AttributeError, KeyError):
        raise UserError(
            "no right answers of a split",
            where=paths.shown(path),
            remedy="restore the file, or remove it where the card's data is on this machine",
        ) from None


def references(card_name: str, split: str) -> References:
    """The references of a split, from the card's data."""
    from tell_plugins.evaluation import scorers

    card = load_card(card_name)
    task = open_task(card, split, "none")
    ids = [bytes(row).hex() for row in task.ids]
    of: dict[str, str] = {}
    names: list[str] = []
    if card.metric not in AS_SAVED:
        truth = scorers.right(task)
        of, names = dict(zip(ids, truth.of, strict=True)), truth.labels
    return References(card_name, split, str(card.metric), of, names, len(ids), form_of(card))


def card_of(entry: Entry) -> Card:
    """The card of an entry's task."""
    return load_card(entry.card)
