"""The dataset string of a recipe: `tell/<card>[:key=value[/key=value...]]`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tell_plugins.core.errors import Problems, UserError, nearest, raise_all, unknown

if TYPE_CHECKING:
    from tell_plugins.core.cards import Card

PREFIX = "tell/"
HELD_OUT = ("validation", "test", "heldout")  # the splits whose rows never train
LOSS_TYPE = "tell"  # the loss under which each row weighs the same and `kl` has a meaning
ORDERS = ("shuffle", "even", "task_first", "task_last")
OVERLAPS = ("keep", "drop")
_AMOUNT = re.compile(
    r"(?P<number>[0-9]{1,15}(?P<point>\.[0-9]+)?(?P<power>[eE]\+?[0-9]{1,2})?)"
    r"(?P<unit>rows|tok|x)"
)
_LARGEST = 1e15  # beyond any data set; numbers up to here are exact
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Amount:
    """How much of a source: `all`, a number of rows, of tokens, or of times the task rows."""

    unit: str  # all | rows | tok | x
    number: float = 0

    def __str__(self) -> str:
        if self.unit == "all":
            return "all"
        if self.number == 0:
            return "0"
        exact = Decimal(repr(float(self.number)))
        if exact % 10_000 == 0:  # 1e4tok, but 2000rows
            return str(exact.normalize()).replace("E+", "e") + self.unit
        return format(exact.normalize(), "f") + self.unit


def splits_of(split: str) -> tuple[str, ...]:
    """The names of `train+tm`, splits that are taken together."""
    return tuple(split.split("+"))


ALL = Amount("all")
NONE = Amount("rows", 0)


@dataclass(frozen=True)
class Spec:
    """A parsed dataset string. `general`, `sources` left at None mean the card's own.

    `split` may be several training splits joined by `+`. `kl` is the weight of the KL divergence to
    the base model that general rows get in place of cross-entropy; it says how rows are trained on,
    not which.
    """

    card: str
    split: str = "train"
    task: Amount = ALL
    general: Amount | None = None
    sources: tuple[str, ...] | None = None
    anchor: str = "card"
    order: str = "shuffle"
    repeat: int = 1
    overlap: str = "drop"
    kl: float = 0.0
    seed: int = 42

    def __str__(self) -> str:
        """The shortest dataset string that parses to this value."""
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "card" and value != field.default:
                parts.append(f"{_KEY_OF_FIELD.get(field.name, field.name)}={_shown(value)}")
        return f"{PREFIX}{self.card}" + (":" + "/".join(parts) if parts else "")

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits whose rows, taken together, are the task rows."""
        return splits_of(self.split)

    def general_of(self, card: Card) -> tuple[Amount, tuple[str, ...]]:
        """The amount of general rows, and the cards they come from: the string's, else the card's.

        Rows that are asked, not trained on, have none beside them unless the string says so.
        """
        if card.general is None:
            return NONE, ()
        amount = self.general or (NONE if self.split in HELD_OUT else card.general.amount)
        return amount, () if amount == NONE else self.sources or card.general.sources

    def with_values(self, **changes: Any) -> Spec:
        return replace(self, **changes)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return format(Decimal(repr(value)).normalize(), "f")
    return "+".join(value) if isinstance(value, tuple) else str(value)


def _instead_of(text: str, task: bool) -> str:
    """What to write in place of a text that is no amount."""
    if _NUMBER.fullmatch(text):
        return f"say the unit: {text}rows or {text}tok"
    if "=" in text:
        return "separate keys with '/'"
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([a-z]+)", text.lower())
    if found is None:
        meant = nearest(text, ["all"])
    else:
        unit = nearest(found[2], ["rows", "tok"] if task else ["rows", "tok", "x"])
        meant = found[1] + unit if unit else None
    if meant == text:
        return "use a number up to 1e15"
    return f"did you mean '{meant}'?" if meant else "a number and its unit, without a space"


def parse_amount(text: str, *, task: bool, where: str) -> Amount:
    """Parse `0`, `all`, `15rows`, `1e4tok` or, for general data, `40x`.

    Rows and tokens are whole; `1.000rows` is refused, it may mean one or a thousand. Raises
    UserError for anything else.
    """
    if text in ("all", "0"):
        return ALL if text == "all" else NONE
    match, remedy = _AMOUNT.fullmatch(text), None
    if match is None:
        remedy = _instead_of(text, task)
    elif float(match["number"]) > _LARGEST:
        remedy = "use a number up to 1e15"
    elif match["unit"] == "x" and task:
        remedy = "'x' is for general data; copies of task rows are repeat=N"
    elif match["unit"] != "x":
        whole = float(match["number"]).is_integer() and (match["power"] or not match["point"])
        remedy = None if whole else "use a whole number"
    if match is None or remedy:
        allowed = "0, all, 15rows, 1e4tok" if task else "0, all, 2000rows, 4e6tok, 40x"
        raise UserError(f"bad amount '{text}'", where=where, allowed=allowed, remedy=remedy)
    number = float(match["number"])
    return Amount(match["unit"], number) if number else NONE


def _one_of(choices: tuple[str, ...]) -> Callable[[str, str], str]:
    def parse(text: str, where: str) -> str:
        if text not in choices:
            raise unknown("value", text, choices, where)
        return text

    return parse


def _number(smallest: int, largest: int, kind: type = int) -> Callable[[str, str], Any]:
    def parse(text: str, where: str) -> Any:
        pattern = _NUMBER if kind is float else re.compile("[0-9]+")
        if not pattern.fullmatch(text) or not smallest <= float(text) <= largest:
            raise UserError(
                f"bad number '{text}'",
                where=where,
                allowed=f"{'' if kind is float else 'whole '}numbers from {smallest} to {largest}",
                remedy="write digits only" + (", such as 0.3" if kind is float else ""),
            )
        return kind(text)

    return parse


def _name(text: str, where: str) -> str:
    if not re.fullmatch(r"[\w.-]+", text):
        raise UserError(
            f"bad name '{text}'", where=where, allowed="letters, digits, _ - .", remedy="rename it"
        )
    return text


def parse_names(text: str, where: str) -> tuple[str, ...]:
    """The names joined by `+`. Raises UserError for a bad name and one named twice."""
    names = tuple(_name(part, where) for part in text.split("+"))
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"'{twice[0]}' is named twice", where=where, remedy="name it once")
    return names


def _splits(text: str, where: str) -> str:
    names = parse_names(text, where)
    held_out = [name for name in names if name in HELD_OUT]
    if held_out and len(names) > 1:
        raise UserError(
            f"split '{held_out[0]}' is held out: it is joined with no other",
            where=where,
            allowed="a split, or training splits joined by '+', such as train+tm",
            remedy=f"leave '{held_out[0]}' out",
        )
    return text


_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "split": _splits,
    "task": lambda text, where: parse_amount(text, task=True, where=where),
    "general": lambda text, where: parse_amount(text, task=False, where=where),
    "from": parse_names,
    "anchor": _name,
    "order": _one_of(ORDERS),
    "repeat": _number(1, 100_000),
    "overlap": _one_of(OVERLAPS),
    "kl": _number(0, 1000, float),
    "seed": _number(0, 2**32 - 1),  # what ms-swift takes too
}
KEYS = tuple(_PARSERS)
_KEY_OF_FIELD = {"sources": "from"}
_FIELD_OF_KEY = {"from": "sources"}


def weighting(loss_type: str | None) -> str:
    """What weighs the same in a step under an ms-swift `loss_type`: each `row` or each `token`.

    Another loss than cross-entropy weighs by its own rules and gives its name.
    """
    if loss_type in (None, "", "cross_entropy"):
        return "token"
    return "row" if loss_type == LOSS_TYPE else str(loss_type)


def is_tell(text: str) -> bool:
    """Whether a dataset entry of a recipe is one of ours (a hub prefix such as `ms::` is)."""
    return text.split("::", 1)[-1].startswith(PREFIX)


def parse_spec(text: str, *, where: str = "dataset") -> Spec:
    """Parse a dataset string; all of its problems are raised together."""
    body = text.split("::", 1)[-1]
    if not body.startswith(PREFIX):
        raise UserError(
            f"'{text}' is no TELL dataset string",
            where=where,
            allowed=f"{PREFIX}<card>[:key=value[/key=value...]]",
            remedy=f"begin with '{PREFIX}'",
        )
    where = f"{where} '{text}'"
    problems = Problems()
    body, sample, _ = body.partition("#")
    if sample:
        problems.append(
            UserError(
                "'#' takes no sample of a mixture",
                where=where,
                allowed="task=... and general=... set the amounts",
                remedy="write task=15rows/general=2000rows instead of #N",
            )
        )
    card, _, rest = body[len(PREFIX) :].partition(":")
    values: dict[str, Any] = {}
    for part in rest.split("/") if rest else []:
        with problems:
            key, value = _pair(part, where)
            field = _FIELD_OF_KEY.get(key, key)
            if field in values:
                raise UserError(f"key '{key}' is given twice", where=where, remedy="name it once")
            values[field] = _PARSERS[key](value, f"{where}, key '{key}'")
    if not re.fullmatch(r"[\w.-]+", card):
        problems.append(
            UserError(
                f"bad card name '{card}'",
                where=where,
                allowed="letters, digits, _ - .",
                remedy=f"write {PREFIX}<card>, then ':' and the keys",
            )
        )
    raise_all(problems)
    return Spec(card, **values)


def _pair(text: str, where: str) -> tuple[str, str]:
    """A key that there is, and its value."""
    key, _, value = (part.strip() for part in text.partition("="))
    if not (key and value):
        raise UserError(
            f"'{text}' is no key=value pair",
            where=where,
            allowed=f"keys {', '.join(KEYS)}",
            remedy="write key=value, pairs separated by '/'",
        )
    if key not in _PARSERS:
        raise unknown("key", key, KEYS, where)
    return key, value
