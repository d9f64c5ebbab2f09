"""One shape for everything a user may do wrong: found, where, allowed, remedy."""

from __future__ import annotations

import difflib
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Sequence

_LISTED = 24  # allowed names that a message lists; three times as many where none is near


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
        lines = [found if where is None else f"{where}: {found}"]
        lines += [f"  allowed: {allowed}"] if allowed else []
        lines += [f"  remedy:  {remedy}"] if remedy else []
        super().__init__("\n".join(lines))


class UserErrors(UserError):
    """Several problems found in one pass, reported together."""

    def __init__(self, problems: Sequence[UserError]) -> None:
        parts = [each.problems if isinstance(each, UserErrors) else [each] for each in problems]
        self.problems: list[UserError] = [problem for part in parts for problem in part]
        super().__init__("\n".join(map(str, self.problems)))


class Problems(list[UserError]):
    """Problems found in one pass: `with problems:` adds the one that its block raises."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError):
            self.append(error)
        return isinstance(error, UserError)


def raise_all(problems: Sequence[UserError]) -> None:
    """Raise `problems` as one error; do nothing when there are none."""
    if problems:
        raise problems[0] if len(problems) == 1 else UserErrors(problems)


class MachineError(Exception):
    """The machine or the network failed, not the user (exit code 2)."""

    def __init__(self, found: str, *, remedy: str | None = None) -> None:
        super().__init__(found + (f"\n  remedy:  {remedy}" if remedy else ""))


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` most likely meant, or None when nothing is close."""
    return next(iter(difflib.get_close_matches(word, list(choices), n=1)), None)


def unknown(kind: str, word: str, choices: Iterable[str], where: str) -> UserError:
    """The error for a name that is not one of `choices`, with the nearest match as remedy."""
    names = sorted(choices)
    match = nearest(word, names)
    few = len(names) <= (_LISTED if match else 3 * _LISTED)
    allowed = ", ".join(names) if few else f"{len(names)} names"
    remedy = f"did you mean '{match}'?" if match else f"use one of the allowed {kind}s"
    return UserError(f"unknown {kind} '{word}'", where=where, allowed=allowed, remedy=remedy)


def at_least(least: int) -> Callable[[str], int]:
    """The `type` of an argument of a command line that is a number from `least` on."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise ArgumentTypeError(f"{value} is too small; allowed: {least} and more")
        return value

    return number


def above_zero(text: str) -> float:
    """The `type` of an argument of a command line that is a number above 0."""
    value = float(text)
    if not value > 0:
        raise ArgumentTypeError(f"{text} is too small; allowed: above 0")
    return value
