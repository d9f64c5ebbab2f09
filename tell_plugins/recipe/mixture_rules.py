"""Rules on a mixture that stands: its shares, and what its anchor says of the answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.mixture import Mixture
from tell_plugins.recipe.findings import Finding, warning

_MOST_LABELS = 20  # more different answers are no closed set
_LONGEST_LABEL = 40
_QUOTED = "[\"“„‘'`«]([^\"“”„‘’'`«»\n]{1,40})[\"”“’'`»]"
_OR = r"(?:\bor\b|\boder\b|\bou\b|\beller\b|\bили\b|或|/|\|)"
_QUOTED_ANSWERS = re.compile(rf"{_QUOTED}(?:\s*,\s*{_QUOTED})*\s*,?\s*{_OR}\s*{_QUOTED}")
_PLAIN_ANSWERS = re.compile(
    r"\b(?:answer|reply|respond|say|output|return|write)\b\W+"
    r"(?:(?:only|just|with|by|either|one|of|the|word|words)\W+){0,4}"
    r"(\w+)((?:\s*,\s*\w+)*)\s*,?\s+or\s+(\w+)",
    re.IGNORECASE,
)


def check_shares(task: int, general: int, where: str) -> Iterator[Finding]:
    """More task entries than general ones; none at all is plain SFT, which is meant."""
    if 0 < general < task:
        yield warning(
            "tell-general-few",
            f"{task:,} task rows among {general:,} general rows: the task is the larger part",
            where,
            "more general rows (general=40x is forty a task row), or general=0 for plain SFT",
        )


def check_anchor(mixture: Mixture) -> Iterator[Finding]:
    """Answers that the anchor names and no row gives."""
    task = mixture.task
    if task is None or not task.anchor.text:
        return
    known = _answers(task.responses)
    if known is None:
        return
    answers, is_json = known
    named = _named(task.anchor.text, quoted_only=is_json)
    missing = [name for name in named if name not in answers]
    if missing:
        few = sorted(answer for answer in answers if len(answer) <= _LONGEST_LABEL)[:8]
        names = " and ".join(f"'{name}'" for name in dict.fromkeys(missing))
        yield warning(
            "tell-anchor-answers",
            f"the anchor names {names} as an answer, and no row of '{task.card.name}' answers so",
            paths.shown(task.file),
            "let anchor and rows say the same, letter by letter",
            "answers of the rows: " + ", ".join(f"'{answer}'" for answer in few),
        )


def _answers(responses: Sequence[str]) -> tuple[set[str], bool] | None:
    """The answers of a task whose answers are JSON or few labels, and whether they are JSON."""
    parts: set[str] = set()
    for response in responses:
        try:
            value = json.loads(response)
        except (ValueError, RecursionError):
            break
        if not isinstance(value, dict):
            break
        parts.update(_scalars(value))
    else:
        return parts, True
    labels = {response.strip() for response in responses}
    closed = len(labels) <= min(_MOST_LABELS, len(responses) // 2)
    if not closed or any(len(label) > _LONGEST_LABEL for label in labels):
        return None
    return labels, False


def _scalars(value: Any) -> Iterator[str]:
    """Keys and values of a JSON value as text."""
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            yield from map(str, part)
            stack += part.values()
        elif isinstance(part, list):
            stack += part
        else:
            yield part if isinstance(part, str) else json.dumps(part)


def _named(anchor: str, *, quoted_only: bool) -> list[str]:
    """The answers that an anchor lists with an "or"."""
    found = []
    for match in _QUOTED_ANSWERS.finditer(anchor):
        found += re.findall(_QUOTED, match[0])
    for match in () if quoted_only else _PLAIN_ANSWERS.finditer(anchor):
        found += [match[1], *re.findall(r"\w+", match[2]), match[3]]
    return found


def check_exposure(weight: float, task: int, where: str) -> Iterator[Finding]:
    """Task rows that only meet learning rates next to 0."""
    if task and weight < 0.005:
        yield warning(
            "tell-exposure-zero",
            f"exposure 0.00: the {task:,} task rows stand in steps of learning rate 0, so the run "
            "does not learn the task",
            where,
            "order=shuffle or order=even, fewer warm-up steps, or more epochs",
        )
