"""What is wrong, or nearly wrong, with a recipe: one shape and one id for every rule's result.

What each id means, and its remedy, stands in docs/check.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tell_plugins.core.errors import UserError, UserErrors

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Finding:
    """A problem and how much it matters: an `error` stops a run, a `warning` does not.

    `rule` is its id, which stays the same over releases.
    """

    rule: str
    severity: str
    problem: UserError


def error(
    rule: str, found: str, where: str, remedy: str | None, allowed: str | None = None
) -> Finding:
    return Finding(rule, ERROR, UserError(found, where=where, allowed=allowed, remedy=remedy))


def warning(
    rule: str, found: str, where: str, remedy: str | None, allowed: str | None = None
) -> Finding:
    return Finding(rule, WARNING, UserError(found, where=where, allowed=allowed, remedy=remedy))


def split(problem: UserError) -> list[UserError]:
    """The single problems in an error that may carry several."""
    if isinstance(problem, UserErrors):
        return [part for each in problem.problems for part in split(each)]
    return [problem]


def as_errors(rule: str, problem: UserError) -> list[Finding]:
    return [Finding(rule, ERROR, part) for part in split(problem)]


def errors_of(findings: Iterable[Finding]) -> list[UserError]:
    return [finding.problem for finding in findings if finding.severity == ERROR]
