"""Cards: `datasets/<name>/card.yaml` declares a data set and holds no code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import regex
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, unknown
from tell_plugins.core.spec import HELD_OUT, Amount, parse_amount, splits_of
from tell_plugins.core.yamlfile import Document, read_yaml

# how a split is called that is not meant to train
_HELD_OUT_NAMES = re.compile(r"(dev|e?val|test|held|hold)", re.IGNORECASE)
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"'{twice[0]}' is named twice")
    return names


Distinct = Annotated[tuple[Text, ...], AfterValidator(_distinct)]
BlobId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]  # git's, of a file


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(_Strict):
    """Which columns of a file are the query and the response; several are joined by a new line.

    `history` is a column of earlier turns, a list of [question, answer], which may be empty.
    """

    query: tuple[Text, ...] = Field(min_length=1)
    response: Text
    history: Text | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        return (*self.query, self.response)

    @field_validator("query", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _no_answer_in_the_query(self) -> Columns:
        if self.response in self.query:
            raise ValueError(f"column '{self.response}' is query and response at once")
        return self


class Published(_Strict):
    """A published file that rows are made of.

    Its rows are ranked by a hash of what is made of them; `first` takes that many of the ranking,
    `after` all but that many, so that two splits of one file have no row in common.
    """

    file: Text
    url: Text
    blob: BlobId
    add: dict[Text, Text] = Field(default_factory=dict)  # a column for all rows, e.g. a label
    first: int | None = Field(default=None, gt=0)
    after: int = Field(default=0, ge=0)


class Made(_Strict):
    """How published rows become query and response: which rows are kept, and two templates.

    The templates are Jinja2 over a row's columns; `keep` names the values of a column that stay.
    """

    query: Text
    response: Text
    keep: dict[Text, tuple[Text, ...]] = Field(default_factory=dict)


class Split(_Strict):
    """Where the rows of one split are: a local file name, and where it can be had."""

    file: Text
    columns: Columns | None = None
    rows: int | None = Field(default=None, gt=0)  # what the official file holds
    url: Text | None = None
    blob: BlobId | None = None
    made_of: tuple[Published, ...] | None = Field(default=None, min_length=1)
    modelscope: Text | None = None
    huggingface: Text | None = None
    subset: Text | None = None
    hub_split: Text = "train"
    build: Text | None = None  # the command that builds the file, where it is not downloaded


class General(_Strict):
    """What a task mixes with when the dataset string does not say."""

    sources: Distinct = Field(alias="from", min_length=1)
    amount: Amount

    @field_validator("amount", mode="before")
    @classmethod
    def _amount(cls, value: Any) -> Any:
        if isinstance(value, Amount):
            return value
        try:
            return parse_amount(str(value), task=False, where="general.amount")
        except UserError as error:
            raise ValueError(error.found) from error  # `_problem` reads the cause


class Answer(_Strict):
    """How an answer is read: that of a JSON task by its schema, a closed one by its labels."""

    schema_file: Text | None = Field(default=None, alias="schema")
    label: Text | None = None  # the property that carries the label
    labels: Distinct | None = Field(default=None, min_length=2)  # without it, those trained


class Translation(_Strict):
    """Language names of a translation task."""

    source: Text
    target: Text


class Card(_Strict):
    """A data set. Raises UserErrors through `load_card`, never a bare validation error."""

    name: Text
    kind: Literal["task", "general"]
    summary: Text
    licence: Text
    source: Text
    columns: Columns
    splits: dict[str, Split] = Field(min_length=1)
    made: Made | None = None
    # general data
    max_tokens: int | None = Field(default=None, gt=0)
    # task data
    anchor: Text | None = None
    general: General | None = None
    metric: Literal["json", "label", "translation", "number", "text"] | None = None
    answer: Answer | None = None
    translation: Translation | None = None
    question: Text | None = None
    max_new_tokens: int | None = Field(default=None, gt=0)

    _folder: Path = Path()

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def inline_anchor(self) -> bool:
        return self.anchor == "inline"

    @field_validator("splits")
    @classmethod
    def _held_out_by_name(cls, splits: dict[str, Split]) -> dict[str, Split]:
        """Only splits named so are held out; one of a like name would train unnoticed."""
        for name in splits:
            if _HELD_OUT_NAMES.match(name) and name not in HELD_OUT:
                raise ValueError(
                    f"a split '{name}' would not be held out from training: those that are, are "
                    f"named {', '.join(HELD_OUT)}"
                )
        return splits

    @model_validator(mode="after")
    def _is_consistent(self) -> Card:
        made_of = [name for name, split in self.splits.items() if split.made_of]
        if made_of and self.made is None:
            raise ValueError(f"made: split '{made_of[0]}' has made_of, which needs the templates")
        if self.made is not None and not made_of:
            raise ValueError("made: no split has made_of, so there is nothing to make rows of")
        rules = self._task_rules() if self.kind == "task" else self._general_rules()
        for key, wrong, why in rules:
            if wrong:
                raise ValueError(f"{key}: {why}")
        return self

    def _general_rules(self) -> Iterator[tuple[str, Any, str]]:
        """(key, whether it is wrong, why) for general data."""
        for key in ("anchor", "general", "metric", "answer", "translation", "question"):
            yield key, getattr(self, key) is not None, "only a task card has this"

    def _task_rules(self) -> Iterator[tuple[str, Any, str]]:
        """(key, whether it is wrong, why) for a task."""
        for key in ("anchor", "general", "metric"):
            yield key, getattr(self, key) is None, "a task card needs this"
        answer, metric = self.answer or Answer(), self.metric
        json_keys = answer.schema_file or answer.label
        no_schema = metric == "json" and answer.schema_file is None
        yield "max_tokens", self.max_tokens, "only general data is cut by length"
        yield "splits", "train" not in self.splits, "a task card needs a split 'train'"
        yield "answer", no_schema, "metric 'json' needs the answer's schema"
        why = f"'schema' and 'label' are for metric 'json', not '{metric}'"
        yield "answer", metric != "json" and json_keys, why
        why = f"'labels' are for metric 'label', not '{metric}'"
        yield "answer", metric != "label" and answer.labels, why
        no_languages = metric == "translation" and self.translation is None
        yield "translation", no_languages, "metric 'translation' needs the two languages"
        if self.question is not None:
            try:
                groups = regex.compile(self.question).groups
            except regex.error as error:
                yield "question", True, f"no regular expression ({error})"
            else:
                yield "question", groups != 1, "needs exactly one group, the text to compare"

    def schema_path(self) -> Path:
        """The JSON schema of the answers. Raises UserError where there is none."""
        if self.answer is None or self.answer.schema_file is None:
            remedy = "add 'answer: {schema: answer.schema.json}' and the schema's file"
            where = f"card '{self.name}'"
            raise UserError("the card has no answer schema", where=where, remedy=remedy)
        return self.file(self.answer.schema_file)

    def columns_of(self, split: str) -> Columns:
        return self.split(split).columns or self.columns

    def has_turns(self, split: str) -> bool:
        """Whether rows of a split, or of several joined by `+`, may have earlier turns."""
        return any(self.columns_of(name).history is not None for name in splits_of(split))

    def split(self, name: str) -> Split:
        if name not in self.splits and fold_name(self.name, 1) in card_names():
            raise UserError(
                f"no split '{name}': the task is tested by its folds",
                where=f"card '{self.name}'",
                allowed=f"the splits of the cards {fold_name(self.name, 1)} ...",
                remedy="./run.sh eval the recipes of the folds, then ./run.sh compare --pool",
            )
        if name not in self.splits:
            raise unknown("split", name, self.splits, f"card '{self.name}'")
        return self.splits[name]

    def file(self, name: str) -> Path:
        """The path of a text file of the card (anchor, schema), which lies in the card's folder.

        Raises UserError when it is missing or elsewhere: a card may come from a stranger.
        """
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            found = f"file '{name}' is outside the card's folder, or a link that leads there"
        elif not path.is_file():
            found = f"file '{name}' is missing"
        else:
            return path
        where, remedy = paths.shown(self.folder / "card.yaml"), "put it into the card's folder"
        raise UserError(found, where=where, remedy=remedy)


def card_names() -> list[str]:
    """The names of all cards, of the project and of `$TELL_CARDS`, sorted."""
    return sorted({path.parent.name for path in _card_files("*")})


def _card_files(name: str) -> list[Path]:
    """The `card.yaml` of a name; a hidden folder is no card, as one that is just being written."""
    found = [path for root in paths.card_roots() for path in root.glob(f"{name}/card.yaml")]
    return [path for path in found if not path.parent.name.startswith(".")]


def find_card(name: str) -> Path:
    """The `card.yaml` of the card `name`; UserError with the nearest name when there is none."""
    files = _card_files(name) if name in card_names() else []
    if not files:
        roots = " or ".join(paths.shown(root) for root in paths.card_roots())
        raise unknown("card", name, card_names(), f"looked in {roots}")
    if len(files) > 1:
        found = f"two cards are named '{name}': {', '.join(map(paths.shown, files))}"
        remedy = "rename one of the folders and its card"
        raise UserError(found, where="$TELL_CARDS", remedy=remedy)
    return files[0]


def fold_name(task: str, number: int) -> str:
    """The card of a task's fold: a part of its rows tests, the others train."""
    return f"{task}_fold{number}"


def fold_of(name: str) -> tuple[str, int] | None:
    """The task and the number of a fold's card; None for another card's name."""
    match = re.fullmatch(r"(\w+)_fold([1-9]\d*)", name)
    return (match[1], int(match[2])) if match else None


def load_card(name: str, folder: Path | None = None) -> Card:
    """Load the card `name`, from `folder` where it does not lie at its place yet.

    Raises UserError for a missing, unreadable or wrong card.
    """
    path = folder / "card.yaml" if folder else find_card(name)
    return _load(path, paths.version_of(path), name)


@lru_cache(maxsize=64)
def _load(path: Path, _version: tuple[int, ...], name: str) -> Card:
    where, see = paths.shown(path), "docs/own-task.md"
    document = read_yaml(path)
    if not isinstance(document.values, dict):
        found = "a card is a mapping of keys to values"
        raise UserError(found, where=where, remedy=f"see {see}")
    _keep_labels(document)
    card = document.as_model(Card, where, see)
    if card.name != name:
        found = f"name '{card.name}' differs from the folder '{name}'"
        raise UserError(found, where=where, remedy="give both the same name")
    card._folder = path.parent
    return card


def _keep_labels(document: Document) -> None:
    """A label `no`, `True` or `1.0` stays as it is written."""
    answer = document.values.get("answer")
    if isinstance(answer, dict) and isinstance(answer.get("labels"), list):
        answer["labels"] = [
            document.written.get(("answer", "labels", str(number)), label)
            for number, label in enumerate(answer["labels"])
        ]
