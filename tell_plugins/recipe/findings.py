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


def as_errors(rule: str, problem: UserError) -> list[Finding]:
    """The single problems in an error that may carry several."""
    parts = problem.problems if isinstance(problem, UserErrors) else [problem]
    return [Finding(rule, ERROR, part) for part in parts]


def errors_of(findings: Iterable[Finding]) -> list[UserError]:
    return [finding.problem for finding in findings if finding.severity == ERROR]
