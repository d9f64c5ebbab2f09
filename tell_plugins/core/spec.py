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
_NUMBER = r"[0-9]+(?P<point>\.[0-9]+)?(?P<power>[eE][+]?[0-9]+)?"
_AMOUNT = re.compile(f"(?P<number>{_NUMBER})(?P<unit>rows|tok|x)")
_LARGEST = 1e15  # beyond any data set; numbers up to here are exact
_NAME = re.compile(r"[\w.-]+")
_NAMES_HAVE = "letters, digits, _ - ."


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
        return _shown(self.number) + self.unit


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
        values = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        pairs = "/".join(
            f"{'from' if name == 'sources' else name}={_shown(value)}"
            for name, value in values.items()
            if value != getattr(Spec, name)
        )
        return f"{PREFIX}{self.card}" + (f":{pairs}" if pairs else "")

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


def splits_of(split: str) -> tuple[str, ...]:
    """The names of `train+tm`, splits that are taken together."""
    return tuple(split.split("+"))


def weighting(loss_type: str | None) -> str:
    """What weighs the same in a step under an ms-swift `loss_type`: each `row` or each `token`.

    Another loss than cross-entropy weighs by its own rules and gives its name.
    """
    if loss_type in (None, "", "cross_entropy"):
        return "token"
    return "row" if loss_type == LOSS_TYPE else str(loss_type)


# --- values: each parser takes (text, where) and raises UserError


def parse_amount(text: str, *, task: bool, where: str) -> Amount:
    """Parse `0`, `all`, `15rows`, `1e4tok` or, for general data, `40x`.

    Rows and tokens are whole; `1.000rows` is refused, it may mean one or a thousand. Raises
    UserError for anything else.
    """
    if text in ("all", "0"):
        return ALL if text == "all" else NONE
    match, remedy = _AMOUNT.fullmatch(text), None
    number = float(match["number"]) if match else 0.0
    if match is None:
        remedy = _amount_meant(text, ["rows", "tok"] if task else ["rows", "tok", "x"])
    elif number > _LARGEST:
        remedy = "use a number up to 1e15"
    elif match["unit"] == "x":
        remedy = "'x' is for general data; copies of task rows are repeat=N" if task else None
    elif not number.is_integer() or (match["point"] and not match["power"]):
        remedy = "use a whole number"
    if match is None or remedy:
        allowed = "0, all, 15rows, 1e4tok" if task else "0, all, 2000rows, 4e6tok, 40x"
        raise UserError(f"bad amount '{text}'", where=where, allowed=allowed, remedy=remedy)
    return Amount(match["unit"], number) if number else NONE


def _amount_meant(text: str, units: list[str]) -> str:
    """What to write in place of a text that is no amount."""
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([a-z]*)", text.lower(), re.ASCII)
    if found and not found[2]:
        return f"say the unit: {text}rows or {text}tok"
    unit = nearest(found[2], units) if found else None
    meant = found[1] + unit if found and unit else nearest(text, ["all"])
    return f"did you mean '{meant}'?" if meant else "a number and its unit, without a space"


def _one_of(*choices: str) -> Callable[[str, str], str]:
    def parse(text: str, where: str) -> str:
        if text not in choices:
            raise unknown("value", text, choices, where)
        return text

    return parse


def _number(kind: type, least: int, most: int) -> Callable[[str, str], Any]:
    written = "numbers" if kind is float else "whole numbers"
    pattern = r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?" if kind is float else "[0-9]+"

    def parse(text: str, where: str) -> Any:
        if not re.fullmatch(pattern, text) or not least <= float(text) <= most:
            allowed = f"{written} from {least} to {most}"
            remedy = "write digits only" + (", such as 0.3" if kind is float else "")
            raise UserError(f"bad number '{text}'", where=where, allowed=allowed, remedy=remedy)
        return kind(text)

    return parse


def _name(text: str, where: str) -> str:
    if not _NAME.fullmatch(text):
        raise UserError(
            f"bad name '{text}'", where=where, allowed=_NAMES_HAVE, remedy="correct the name"
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
    "order": _one_of(*ORDERS),
    "repeat": _number(int, 1, 100_000),
    "overlap": _one_of("keep", "drop"),
    "kl": _number(float, 0, 1000),
    "seed": _number(int, 0, 2**32 - 1),  # what ms-swift takes too
}
KEYS = tuple(_PARSERS)


# --- the whole string


def is_tell(text: str) -> bool:
    """Whether a dataset entry of a recipe is one of ours (a hub prefix such as `ms::` is)."""
    return text.split("::", 1)[-1].startswith(PREFIX)


def parse_spec(text: str, *, where: str = "dataset") -> Spec:
    """Parse a dataset string; all of its problems are raised together."""
    shape = f"{PREFIX}<card>[:key=value[/key=value...]]"
    if not is_tell(text):
        raise UserError(
            f"'{text}' is no TELL dataset string",
            where=where,
            allowed=shape,
            remedy=f"begin with '{PREFIX}'",
        )
    where = f"{where} '{text}'"
    body, sample, _ = text.split("::", 1)[-1].removeprefix(PREFIX).partition("#")
    card, _, rest = body.partition(":")
    problems = Problems()
    if sample:
        problems.append(
            UserError(
                "'#' takes no sample of a mixture",
                where=where,
                remedy="write task=15rows/general=2000rows instead of #N",
            )
        )
    if not _NAME.fullmatch(card):
        problems.append(
            UserError(
                f"bad card name '{card}'",
                where=where,
                allowed=shape,
                remedy=f"a name is of {_NAMES_HAVE}",
            )
        )
    values: dict[str, Any] = {}
    for part in rest.split("/") if rest else []:
        with problems:
            key, value = _pair(part, where)
            if key in values:
                raise UserError(f"key '{key}' is given twice", where=where, remedy="name it once")
            values[key] = _PARSERS[key](value, f"{where}, key '{key}'")
    raise_all(problems)
    if "from" in values:
        values["sources"] = values.pop("from")
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
