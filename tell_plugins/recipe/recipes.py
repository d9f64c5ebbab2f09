"""A recipe: plain ms-swift YAML, read as the installed ms-swift would read it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tell_plugins.bridge.embedded_model import NAME, model_dir
from tell_plugins.bridge.mixed_use import ONE_ALONE
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, nearest
from tell_plugins.core.spec import Spec, is_tell, parse_spec
from tell_plugins.core.yamlfile import Document, read_yaml
from tell_plugins.recipe.swift_keys import SwiftKeys, swift_keys

TRUE = ("yes", "true", "t", "y", "1")
FALSE = ("no", "false", "f", "n", "0")
# keys whose value is, or may be, a path
PATH_KEYS = (
    *("model", "adapters", "external_plugins", "resume_from_checkpoint", "deepspeed"),
    *("output_dir", "logging_dir", "cached_dataset", "custom_dataset_info", "local_repo_path"),
    "val_dataset",
)
WRITTEN_KEYS = ("output_dir", "logging_dir")  # of these, paths that need not exist yet
TUNED = "_tuned"  # how the recipe ends that `tune` writes of another
SECRETS_REMEDY = (
    "leave it out, and export MODELSCOPE_API_TOKEN (HF_TOKEN for Hugging Face, SWANLAB_API_KEY)"
)


@dataclass(frozen=True)
class Recipe:
    """A recipe file with flags applied, whose settings are read as ms-swift resolves them.

    `value` and its like give what is not in the recipe as ms-swift's default, and raise UserError
    for a value of another type; `get` gives what stands there.
    """

    path: Path
    values: dict[str, Any]  # ms-swift's keys as given
    flags: frozenset[str] = frozenset()  # keys that the command line gave, which won over the file
    written: dict[str, str] = field(default_factory=dict)  # how each number stands in the file
    places: dict[str, str] = field(default_factory=dict)  # where each key stands, for messages

    @property
    def name(self) -> str:
        return self.path.stem

    def where(self, key: str | None = None) -> str:
        """The file, and the line of `key`, or the flag that gave it, for messages."""
        return self.places.get(key or "", paths.shown(self.path))

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    @cached_property
    def swift(self) -> SwiftKeys:
        """What the installed ms-swift knows. Raises MachineError where it cannot be asked."""
        return swift_keys()

    def given(self, key: str) -> bool:
        """Whether the recipe has a value for the key."""
        return self.values.get(key) not in (None, "None")

    def value(self, key: str) -> Any:
        if key == "tuner_type" and self.given("train_type"):
            key = "train_type"  # its old name, which wins
        return self.values[key] if self.given(key) else self.swift.default(key)

    def text(self, key: str, default: str = "") -> str:
        """A value as text: a number as the file writes it, for names such as 1.10."""
        value = self.value(key)
        return default if value is None else self.written.get(key, str(value))

    def names(self, key: str) -> list[str]:
        return [str(part) for part in as_list(self.value(key))]

    def flag(self, key: str) -> bool:
        value = self.value(key)
        if value is not None and str(value).lower() not in TRUE + FALSE:
            raise self.wrong(key, "true or false")
        return str(value).lower() in TRUE

    def number(self, key: str, default: float = 0.0) -> float:
        return float(self._read(key, default, float, "a number"))

    def integer(self, key: str, default: int = 0) -> int:
        return int(self._read(key, default, lambda value: int(str(value)), "a whole number"))

    def _read(self, key: str, default: float, kind: Callable[[Any], float], allowed: str) -> float:
        value = self.value(key)
        if value is None:
            return default
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = kind(value)
            if math.isfinite(number) and not isinstance(value, bool):
                return number
        raise self.wrong(key, allowed)

    def typed(self, key: str) -> Any:
        """The value as the kind that ms-swift has for the key."""
        readers: dict[str, Callable[[str], Any]]
        readers = {"bool": self.flag, "int": self.integer, "float": self.number}
        read = readers.get(self.swift.kind(key), self.value)
        return None if self.value(key) is None else read(key)

    def wrong(self, key: str, allowed: str) -> UserError:
        """The error for a value of another kind."""
        value = self.value(key)
        shown = value if isinstance(value, str) else as_json(value)
        found, where = f"'{key}' is {shown}", self.where(key)
        return UserError(found, where=where, allowed=allowed, remedy="correct the value")

    @property
    def dataset_text(self) -> str:
        """The TELL dataset string. Raises UserError when there is none, or more than one."""
        entries = as_list(self.values.get("dataset"))
        ours = [str(entry) for entry in entries if is_tell(str(entry))]
        if len(ours) != 1 or len(entries) != 1:
            raise UserError(
                f"{len(ours)} TELL data sets among {len(entries)} under 'dataset'",
                where=self.where("dataset"),
                allowed="exactly one entry, tell/<card>:...",
                remedy=ONE_ALONE if ours else "write dataset: [tell/<card>]",
            )
        return ours[0]

    @property
    def spec(self) -> Spec:
        return parse_spec(self.dataset_text, where=self.where("dataset"))

    @property
    def output_dir(self) -> Path:
        """Where the run's results go: the recipe's `output_dir`, else `output/<name>`.

        A `~` is read as ms-swift reads it: that of nobody is a folder's name.
        """
        named = self.text("output_dir") if self.given("output_dir") else f"output/{self.name}"
        return Path(os.path.expanduser(named))

    @property
    def environment(self) -> dict[str, str]:
        """The `ENV` map that ms-swift 4.1 and later read from a recipe; the shell's value wins."""
        given = self.values.get("ENV")
        pairs = given.items() if isinstance(given, dict) else ()
        return {str(k): str(v) for k, v in pairs if str(k) not in os.environ}

    def with_values(self, **values: Any) -> Recipe:
        """The same recipe with some keys replaced; None removes a key."""
        merged = {**self.values, **values}
        kept = {key: value for key, value in merged.items() if value is not None}
        written = {key: text for key, text in self.written.items() if key not in values}
        return replace(self, values=kept, written=written)

    def placed(self, places: Mapping[str, str | None]) -> Recipe:
        """The same recipe, with where another file gave some of its keys (None: it did not)."""
        given = {key: text for key, text in places.items() if text}
        return replace(self, places=self.places | given)

    def argv(self) -> list[str]:
        """The recipe as ms-swift's command line flags, which every version reads alike.

        An empty key becomes the text `None`, as ms-swift makes it (`check` warns of those).
        """
        flags: list[str] = []
        for key, value in self.values.items():
            texts = [_flag_text(part) for part in as_list("None" if value is None else value)]
            if key != "ENV":
                flags += [f"--{key}", *([self.written[key]] if key in self.written else texts)]
        return flags


def as_list(value: Any) -> list[Any]:
    """A YAML value as a list: a scalar is a list of one, nothing is an empty list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _flag_text(value: Any) -> str:
    return as_json(value) if isinstance(value, (bool, dict)) else str(value)


def as_json(value: Any) -> str:
    """A YAML value as JSON; dates, which JSON has not, become text."""
    return json.dumps(value, ensure_ascii=False, default=str)


# --- reading


def load_recipe(path: str | Path, flags: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply command line flags, which win over the YAML.

    Raises UserError for a missing or unreadable file, a key given twice, or no mapping.
    """
    file = paths.user_path(path)
    if not file.is_file():
        raise _no_recipe(path, file)
    document, shown = read_yaml(file), paths.shown(file)
    _refuse_other_kinds(document.values, shown)
    values = {str(key): _installed(value) for key, value in document.values.items()}
    given = parse_flags(flags)
    lines = {place[0]: line for place, line in document.lines.items() if len(place) == 1}
    places = {str(key): f"{shown}, line {line}" for key, line in lines.items()}
    places |= {key: f"flag --{key}" for key in given}
    written = {key: text for key, text in _numbers(document, values) if key not in given}
    return Recipe(file, {**values, **given}, frozenset(given), written, places)


def _numbers(document: Document, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The top-level numbers (and dates) of a file, as they are written there."""
    top = [(str(place[0]), text) for place, text in document.written.items() if len(place) == 1]
    return [(key, text) for key, text in top if not isinstance(values.get(key), (bool, type(None)))]


def _installed(value: Any) -> Any:
    """What a recipe names from a checkout's root, where the installed package has it."""
    if isinstance(value, list):
        return [_installed(part) for part in value]
    if paths.IS_CHECKOUT or not isinstance(value, str):
        return value
    plugin = str(paths.PLUGIN.relative_to(paths.PACKAGE.parent))
    return {plugin: str(paths.PLUGIN), f"models/{NAME}": str(model_dir())}.get(value, value)


_OTHER_KINDS = {  # what a file is that has these keys
    "a sweep file, for `./run.sh sweep`": {"base"},
    "a card, which a recipe names under 'dataset'": {"kind", "splits"},
}


def _refuse_other_kinds(values: Any, where: str) -> None:
    """Say what a file is that is YAML and no recipe."""
    if not isinstance(values, dict):
        found = "a recipe is a mapping of ms-swift's keys"
        raise UserError(found, where=where, remedy="see recipes/")
    for kind, keys in _OTHER_KINDS.items():
        if keys <= set(values) and not {"dataset", "model"} & set(values):
            raise UserError(
                f"this is {kind}, no recipe",
                where=where,
                allowed="a file like those in recipes/, with 'model' and 'dataset'",
                remedy="name a recipe",
            )


def _no_recipe(path: str | Path, file: Path) -> UserError:
    shipped = sorted(paths.RECIPES.glob("*.yaml"))
    known = {p.stem: p for p in (*shipped, *file.parent.glob("*.yaml"))}
    match = nearest(file.stem, known)
    allowed, remedy = None, "name a YAML file, before ms-swift's flags"
    if match:
        remedy = f"did you mean '{paths.shown(known[match])}'?"
    else:
        allowed = ", ".join(p.name for p in shipped) or None
    where = paths.shown(file.parent)
    return UserError(f"no recipe '{path}'", where=where, allowed=allowed, remedy=remedy)


def parse_flags(flags: Sequence[str]) -> dict[str, Any]:
    """`--key value [value...]` or `--key=value` as keys and typed values.

    Paths are those of the caller, as for every program; inside a recipe they are ms-swift's, from
    the project's root. UserError for what is no flag.
    """
    values: dict[str, list[Any]] = {}
    key = ""
    for flag in flags:
        if flag.startswith("--") and len(flag) > 2:
            key, equals, text = flag[2:].partition("=")
            key = key.replace("-", "_")
            values[key] = [_path_of(key, _typed(text))] if equals else []
        elif key:
            values[key].append(_path_of(key, _typed(flag)))
        else:
            raise UserError(
                f"'{flag}' belongs to no flag",
                where="command line",
                allowed="--key value",
                remedy="put ms-swift's flags after the recipe",
            )
    return {key: parts[0] if len(parts) == 1 else parts or True for key, parts in values.items()}


def _path_of(key: str, value: Any) -> Any:
    """A path of the caller as `swift sft` finds it from the project's root; a hub id stays."""
    if key not in PATH_KEYS or not isinstance(value, str) or not value:
        return value
    path = paths.user_target(value) if key in WRITTEN_KEYS else paths.user_path(value)
    if key not in WRITTEN_KEYS and not path.exists():
        return value
    absolute = Path(os.path.abspath(path))
    inside = absolute.is_relative_to(paths.PROJECT) and absolute != paths.PROJECT
    return str(absolute.relative_to(paths.PROJECT) if inside else absolute)


def _typed(text: str) -> Any:
    """A flag's text as ms-swift's parser takes it: numbers, true/false, JSON; else the text."""
    try:
        value = json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text
    return text if value is None or isinstance(value, str) else value


# --- what a run leaves

_VERSION = re.compile(r"v([0-9]+)-([0-9]{8}-[0-9]{6})")  # how ms-swift names runs of one folder
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints below a run's output folder, oldest first.

    By the number and time in the version's name, then by step: what is merged or touched later
    gives an old run's folder a new time. A checkpoint holds an adapter, or a whole model where
    `tuner_type: full` trained it.
    """

    def age(path: Path) -> tuple[int, str, int]:
        version = _VERSION.match(path.parent.name) if path.parent != run else None
        number, time = (int(version[1]), version[2]) if version else (-1, "")
        return number, time, int(path.name.rpartition("-")[2])

    found = [*run.glob("checkpoint-*"), *run.glob("v*-*/checkpoint-*")]
    steps = [path for path in found if re.fullmatch("checkpoint-[0-9]+", path.name)]
    return sorted(filter(is_trained, steps), key=age)


def is_trained(folder: Path) -> bool:
    """Whether the folder holds an adapter or a whole model."""
    return (folder / "adapter_config.json").is_file() or is_whole_model(folder)


def is_whole_model(folder: Path) -> bool:
    """Whether the folder holds all weights of a model, as `tuner_type: full` and merging leave."""
    if (folder / "adapter_config.json").is_file() or not (folder / "config.json").is_file():
        return False
    names = [name + end for name in _WEIGHTS for end in ("", ".index.json")]
    return any((folder / name).is_file() for name in names)
