"""Sweep files: a base recipe, what varies, the seeds, and what is evaluated.

    base: recipes/qwen_json.yaml
    settings: {overlap: keep}                   # for all runs
    methods: {TELL: {}, SFT: {general: 0}}      # each is crossed with the grid
    grid: {task: [1e4tok, 1e5tok, 1e6tok]}
    runs: {general only: {general_only: TELL}}  # not crossed
    seeds: [42]
    evaluate: {split: test, rows: 500}
    plot: {x: task_tokens}

A setting is a key of the dataset string, a key of ms-swift, or one of `OWN_KEYS`. A method may give
it a value for each value of the grid, `repeat: {1e4tok: 8, 1e5tok: 1}`, and has no run elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import Problems, UserError, nearest, raise_all, unknown
from tell_plugins.core.spec import KEYS
from tell_plugins.core.yamlfile import Document, read_yaml
from tell_plugins.evaluation import rivals
from tell_plugins.evaluation.paper_numbers import published
from tell_plugins.recipe.recipes import as_list, load_recipe
from tell_plugins.recipe.swift_keys import swift_keys


def _value(value: Any) -> Any:
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, (bool, int, float, str)) for part in parts):
        raise ValueError("a setting is a text, a number, true, false, or a list of them")
    return value


def _crossed_value(value: Any) -> Any:
    """A value, or one for each of some values of the grid."""
    if not isinstance(value, dict):
        return _value(value)
    return {str(place): _value(part) for place, part in value.items()}


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Value = Annotated[Any, AfterValidator(_value)]
Settings = dict[Text, Value]
CrossedSettings = dict[Text, Annotated[Any, AfterValidator(_crossed_value)]]

SEE = "recipes/sweeps/ for examples"
# what makes a run out of the mixture of another method at the same point of the grid: its general
# rows alone; shuffled words in place of them; its own rows, in as many optimizer steps as that one
# takes, for which task rows alone are repeated
DERIVED = ("general_only", "random_text", "equal_steps")
RIVAL, TEST_ANCHOR = "rival", "test_anchor"
# what a method may set beside keys of the dataset string and of ms-swift: the task; what answers
# without training; the anchor that it is tested with, in place of the one that it trained with
OWN_KEYS = ("card", RIVAL, TEST_ANCHOR, *DERIVED)
TELL = "TELL"
# name -> what it `sets`, and what it `tells`
CONTROLS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("controls.yaml").read_text(encoding="utf-8")
)
SPEC_KEYS = tuple(key for key in KEYS if key != "seed")
_OWN = {  # keys that the sweep sets itself, and how a user sets them
    "seed": "list it under 'seeds' (with --controls: --seeds 42,43)",
    "dataset": "give its keys one by one (card, task, general, ...)",
    "output_dir": "every run gets a folder of its own, see --out",
    "add_version": "every run gets a folder of its own, see --out",
    "resume_from_checkpoint": "a sweep resumes by itself",
}
# of the command itself, for the nearest match of a flag
_OPTIONS = {"dry_run", "retry_failed", "general_rows", "jobs", "out", "rate", "ray", "controls"}


@dataclass(frozen=True)
class Cell:
    """One run as the sweep file asks for it. `at` is its point of the grid."""

    method: str
    at: dict[str, Any]
    seed: int
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        return json.dumps([self.method, self.at, self.seed], sort_keys=True)

    @property
    def rival(self) -> str:
        return str(self.settings.get(RIVAL, ""))

    @property
    def label(self) -> str:
        """How the run is called in lists."""
        point = ", ".join(f"{key}={value}" for key, value in self.at.items())
        return f"{self.method}{f' ({point})' if point else ''}, seed {self.seed}"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Evaluate(_Strict):
    """What is asked of every run and of the base model; see `./run.sh eval --help`."""

    split: Literal["validation", "test", "heldout"] = "test"  # rows that never train
    rows: int | None = Field(default=None, ge=1)
    decoding: Literal["greedy", "paper"] = "greedy"
    seeds: tuple[int, ...] = Field(default=(42,), min_length=1)
    general_rows: int = Field(default=40, ge=0)
    retention_rows: int | None = Field(default=None, ge=0)
    batch_size: int = Field(default=16, ge=1)
    max_new_tokens: int | None = Field(default=None, ge=1)
    anchor: Text | None = None  # default: as the run was trained
    shots: int = Field(default=0, ge=0)
    learned: str = ""  # bleurt, comet, or both
    engine: Literal["transformers", "vllm"] = "transformers"

    @field_validator("seeds")
    @classmethod
    def _of_sampling(cls, seeds: tuple[int, ...], known: ValidationInfo) -> tuple[int, ...]:
        if known.data.get("decoding") == "greedy" and len(seeds) > 1:
            raise ValueError("greedy answers are the same for each seed: give one, or sample")
        return seeds


class Plot(_Strict):
    """How the report draws the sweep."""

    x: Literal["task_tokens", "task_rows", "general_tokens", "general_rows"] | None = None
    reference: Text = TELL  # what every other method is compared with
    paper: Text | None = None  # published points that belong to it, see `published`


class Sweep(_Strict):
    """A sweep file. Raises UserErrors through `load_sweep`, never a bare validation error."""

    title: Text
    base: Text
    settings: Settings = Field(default_factory=dict)  # what all runs have in common
    methods: dict[Text, CrossedSettings] = Field(default_factory=dict)
    grid: dict[Text, list[Value]] = Field(default_factory=dict)
    runs: dict[Text, Settings] = Field(default_factory=dict)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(default=(42,), min_length=1)
    evaluate: Evaluate = Evaluate()
    plot: Plot = Plot()

    _name: str = ""
    _flags: Mapping[str, Any] = {}
    _document: Document = Document(None)
    _where: str = ""

    @property
    def name(self) -> str:
        return self._name

    @property
    def flags(self) -> Mapping[str, Any]:
        """ms-swift's keys given on the command line; they win over the base recipe."""
        return self._flags

    def place(self, *keys: str) -> str:
        """The file and the line of a key, by the keys that lead to it, for messages."""
        return self._document.place(self._where, keys)

    def place_of(self, method: str, key: str) -> str | None:
        """Where a setting of a method's runs stands; None when the base recipe gives it."""
        groups = self.groups()
        for group in (("runs", method), ("methods", method), ("grid",), ("settings",)):
            if key in groups.get(group, {}):
                return f"{self.place(*group, key)}, {', '.join(group)}"
        return None

    @field_validator("methods", "runs", mode="before")
    @classmethod
    def _empty_settings(cls, value: Any) -> Any:
        """`TELL:` without anything after it means no settings."""
        if not isinstance(value, dict):
            return value
        return {name: {} if settings is None else settings for name, settings in value.items()}

    @model_validator(mode="after")
    def _something_to_do(self) -> Sweep:
        if not (self.methods or self.runs or self.grid):
            raise ValueError("nothing to run: give 'methods', 'grid' or 'runs'")
        both = sorted(set(self.methods) & set(self.runs))
        if both:
            raise ValueError(f"'{both[0]}' is under 'methods' and under 'runs'")
        for key, values in {**self.grid, "seeds": self.seeds}.items():
            if not values or len(set(map(str, values))) < len(values):
                raise ValueError(f"'{key}' has {'a value twice' if values else 'no values'}")
        return self

    def crossed(self) -> dict[str, Settings]:
        """The methods that are crossed with the grid; without any, the base recipe as it is."""
        return self.methods or ({self.plot.reference: {}} if self.grid else {})

    def named(self) -> dict[str, Settings]:
        """The settings of every method."""
        return {**self.crossed(), **self.runs}

    def cell(self, method: str, point: Mapping[str, Any], seed: int) -> Cell | None:
        """The run of a method at a point of the grid; None where a setting has no value there.

        It stands there without the keys that it sets itself, and without any if it is not crossed.
        """
        own = self.named()[method]
        crossed = point if method in self.crossed() else {}
        at = {key: value for key, value in crossed.items() if key not in own}
        settings = {**self.settings, **at, **own}
        places = set(map(str, at.values()))
        for key, value in settings.items():
            if isinstance(value, dict):
                here = [part for place, part in value.items() if place in places]
                if not here:
                    return None
                settings[key] = here[0]
        return Cell(method, at, seed, settings)

    def cells(self) -> list[Cell]:
        """The runs that a sweep asks for, seed by seed within a point of the grid.

        A method that sets a key of the grid itself has one run there, not one for every value.
        """
        points = [dict(zip(self.grid, at, strict=True)) for at in product(*self.grid.values())]
        places = [(method, point) for method in self.crossed() for point in points]
        places += [(method, {}) for method in self.runs]
        made = [self.cell(*place, seed) for place in places for seed in self.seeds]
        return list({cell.key: cell for cell in made if cell is not None}.values())

    def groups(self) -> dict[tuple[str, ...], Mapping[str, Any]]:
        """All settings, by the keys that lead to each group."""
        return {
            ("grid",): self.grid,
            ("settings",): self.settings,
            **{("methods", name): settings for name, settings in self.crossed().items()},
            **{("runs", name): settings for name, settings in self.runs.items()},
        }


def load_sweep(path: str | Path, flags: Mapping[str, Any] | None = None) -> Sweep:
    """Read a sweep file. Raises UserError for a missing, unreadable or wrong file."""
    file = paths.user_path(path)
    if not file.is_file():
        names = sorted(p.stem for p in (paths.RECIPES / "sweeps").glob("*.yaml"))
        match = nearest(file.stem, names)
        raise UserError(
            f"no sweep file '{path}'",
            where=paths.shown(file.parent),
            allowed=", ".join(names) + " in recipes/sweeps/, or a file of your own",
            remedy=f"did you mean 'recipes/sweeps/{match}.yaml'?" if match else "name a YAML file",
        )
    document = read_yaml(file)
    return make_sweep(document.values, file.stem, paths.shown(file), flags, document)


def make_sweep(
    raw: Any,
    name: str,
    where: str,
    flags: Mapping[str, Any] | None = None,
    document: Document | None = None,
) -> Sweep:
    """The sweep that a mapping describes; all of its problems are raised together.

    `document` is the file that it was read from, whose lines are named in errors.
    """
    if not isinstance(raw, dict):
        raise UserError(
            "a sweep file is a mapping of keys to values", where=where, remedy="see recipes/sweeps/"
        )
    if "base" not in raw and {"dataset", "external_plugins"} & set(raw):
        raise UserError(
            "this is a recipe, no sweep file",
            where=where,
            allowed="a file like those in recipes/sweeps/, with a recipe as its 'base'",
            remedy=f"./run.sh sweep --controls {where} does the control grid of this recipe",
        )
    document = document or Document(raw)
    sweep = document.as_model(Sweep, where, SEE)
    sweep._name, sweep._flags = name, dict(flags or {})
    sweep._document, sweep._where = document, where
    raise_all([*_wrong_settings(sweep), *_wrong_plot(sweep), *_wrong_flags(sweep.flags)])
    return sweep


# --- the controls that tell what TELL's gain is made of, as a grid for any recipe -----------------


def controls(
    recipe: str,
    *,
    changes: Mapping[str, Any],
    seeds: list[int],
    evaluate: Mapping[str, Any],
    flags: Mapping[str, Any],
) -> Sweep:
    """The control grid of a recipe.

    Args:
        changes: keys of the dataset string that replace the recipe's (`task`, `general`, `from`).
        evaluate: what is asked, as under `evaluate` in a sweep file.
        flags: keys of ms-swift that replace the recipe's.
    """
    base = load_recipe(recipe)
    card, where = load_card(base.spec.card), f"controls of {paths.shown(base.path)}"
    amounts = [str(value).replace("+", "_") for value in changes.values()]
    shown = ", ".join(f"{key}={value}" for key, value in changes.items())
    fitting = {
        method: {**changes, **control["sets"]}
        for method, control in CONTROLS.items()
        if RIVAL not in control["sets"]
        or (card.kind == "task" and rivals.fits(control["sets"][RIVAL], card))
    }
    raw = {
        "title": f"Controls of {base.name}" + (f" ({shown})" if shown else ""),
        "base": str(base.path),
        "runs": fitting,
        "seeds": seeds,
        "evaluate": dict(evaluate),
        "plot": {"reference": TELL},
    }
    return make_sweep(raw, "_".join(["controls", base.name, *amounts]), where, flags)


def meaning(method: str) -> str:
    """What a control tells, "" for a method that is none."""
    return str(CONTROLS.get(method, {}).get("tells", ""))


# --- what is wrong with a sweep -------------------------------------------------------------------


def _wrong_flags(flags: Mapping[str, Any]) -> Iterator[UserError]:
    swift = set(swift_keys().keys)
    for key in flags:
        if key in _OWN and key != "dataset":
            yield UserError(
                f"'--{key}' is set by the sweep", where="command line", remedy=_OWN[key]
            )
        elif key not in swift:
            yield unknown("flag", key, swift | _OPTIONS, "command line")


def _wrong_settings(sweep: Sweep) -> Iterator[UserError]:
    known = {*SPEC_KEYS, *OWN_KEYS, *swift_keys().keys}
    for group, settings in sweep.groups().items():
        for key, value in settings.items():
            where = f"{sweep.place(*group, key)}, {', '.join(group)}"
            if key in _OWN:
                yield UserError(f"'{key}' is set by the sweep", where=where, remedy=_OWN[key])
            elif key not in known:
                yield unknown("setting", key, known, where)
            elif isinstance(value, dict):
                yield from _wrong_places(sweep, key, value, where)
            elif key in DERIVED:
                yield from _wrong_reference(sweep, group, str(value), f"{where}, key '{key}'")
            elif key == RIVAL:
                wrong = (name for name in as_list(value) if name not in rivals.RIVALS)
                yield from (unknown("rival", str(name), rivals.RIVALS, where) for name in wrong)


def _wrong_reference(
    sweep: Sweep, group: Sequence[str], name: str, where: str
) -> Iterator[UserError]:
    """What is wrong with the method that a derived one names."""
    names = sweep.named()
    if group[0] in ("grid", "settings"):
        yield UserError("this cannot hold for all runs", where=where, remedy="put it into a method")
    elif name not in names:
        yield unknown("method", name, names, where)
    elif set(DERIVED) & set(names[name]):
        yield UserError(
            f"'{name}' is itself derived from another method",
            where=where,
            allowed="a method whose mixture stands on its own",
            remedy="name that one",
        )


def _wrong_places(
    sweep: Sweep, key: str, values: Mapping[str, Any], where: str
) -> Iterator[UserError]:
    """What is wrong with a setting that has a value for each value of the grid."""
    if key in OWN_KEYS:
        yield UserError(
            f"'{key}' has a value for each value of the grid",
            where=where,
            allowed="one value",
            remedy="a method of its own for each of them",
        )
    known = [str(value) for axis in sweep.grid.values() for value in axis]
    for place in (place for place in values if place not in known):
        yield unknown("value of the grid", place, known, f"{where}, key '{key}'")


def _wrong_plot(sweep: Sweep) -> Iterator[UserError]:
    """Names that the report would look for in vain, after all the runs."""
    names, problems = sweep.named(), Problems()
    if "reference" in sweep.plot.model_fields_set and sweep.plot.reference not in names:
        where = f"{sweep.place('plot', 'reference')}, key 'plot.reference'"
        yield unknown("method", sweep.plot.reference, names, where)
    with problems:
        published(sweep.plot.paper, f"{sweep.place('plot', 'paper')}, key 'plot.paper'")
    yield from problems
