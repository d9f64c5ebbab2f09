"""One shape for everything a user may do wrong: found, where, allowed, remedy."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_LISTED = 24  # allowed names that a message lists


class UserError(Exception):
    """The user's input is wrong; shown as one message without a traceback (exit code 1)."""

    def __init__(
        self,
        found: str,
        *,
        where: str | None = None,
        allowed: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.found, self.where, self.allowed, self.remedy = found, where, allowed, remedy
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [self.found if self.where is None else f"{self.where}: {self.found}"]
        if self.allowed:
            lines.append(f"  allowed: {self.allowed}")
        if self.remedy:
            lines.append(f"  remedy:  {self.remedy}")
        return "\n".join(lines)


class UserErrors(UserError):
    """Several problems found in one pass, reported together."""

    def __init__(self, problems: Sequence[UserError]) -> None:
        parts = [each.problems if isinstance(each, UserErrors) else [each] for each in problems]
        self.problems: list[UserError] = [problem for part in parts for problem in part]
        super().__init__("\n".join(str(problem) for problem in problems))


class Problems(list[UserError]):
    """Problems found in one pass: `with problems:` adds the one that its block raises."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError):
            self.append(error)
        return isinstance(error, UserError)


def below_one(where: str, remedy: str = "raise it") -> UserError:
    """A count that has to be 1 or more."""
    return UserError("a count below 1", where=where, allowed="1 and more", remedy=remedy)


class MachineError(Exception):
    """The machine or the network failed, not the user (exit code 2)."""

    def __init__(self, found: str, *, remedy: str | None = None) -> None:
        super().__init__(found + (f"\n  remedy:  {remedy}" if remedy else ""))


def raise_all(problems: Sequence[UserError]) -> None:
    """Raise `problems` as one error; do nothing when there are none."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise UserErrors(problems)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` most likely meant, or None when nothing is close."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return matches[0] if matches else None


def unknown(kind: str, word: str, choices: Iterable[str], where: str) -> UserError:
    """The error for a name that is not one of `choices`, with the nearest match as remedy."""
    names = sorted(choices)
    match = nearest(word, names)
    few = len(names) <= (_LISTED if match else 3 * _LISTED)  # without a match, one has to choose
    shown = ", ".join(names) if few else f"{len(names)} names"
    return UserError(
        f"unknown {kind} '{word}'",
        where=where,
        allowed=shown,
        remedy=f"did you mean '{match}'?" if match else f"use one of the allowed {kind}s",
    )


def wrong_value(
    part: Any, where: str, see: str, keys_at: Callable[[list[str]], Iterable[str]]
) -> UserError:
    """One error of pydantic about a file as found, where, allowed, remedy.

    `keys_at` gives the keys of the mapping at a place of the file; `see` says where examples are.
    """
    location = [str(step) for step in part["loc"] if step != "[key]"]
    key = ".".join(location)
    if part["type"] == "missing":
        remedy = f"add '{location[-1]}: ...'"
        return UserError(f"key '{key}' is missing", where=where, remedy=remedy)
    if part["type"] == "extra_forbidden":
        keys = sorted(keys_at(location[:-1]))
        match = nearest(location[-1], keys)
        return UserError(
            f"unknown key '{key}'",
            where=where,
            allowed=", ".join(keys),
            remedy=f"did you mean '{match}'?" if match else "remove it",
        )
    cause = getattr(part.get("ctx", {}).get("error"), "__cause__", None)
    if isinstance(cause, UserError):
        return UserError(
            f"key '{key}': {cause.found}", where=where, allowed=cause.allowed, remedy=cause.remedy
        )
    message = str(part["msg"]).removeprefix("Value error, ")
    if not location:
        return UserError(message, where=where, remedy=f"see {see}")
    shown = "empty" if part["input"] is None else repr(part["input"])
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return UserError(f"key '{key}' is {shown}: {message}", where=where, remedy="correct it")
