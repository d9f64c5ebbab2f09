"""Rules on a mixture that stands: its rows, their tokens, its shares and what its anchor says."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tell_plugins.core.json_values import parse_json
from tell_plugins.core.mixture import GENERAL, Drawn, build_mixture
from tell_plugins.core.sources import TaskRows
from tell_plugins.core.text import KNOWN, any_of, found_in
from tell_plugins.recipe.checked import Checked
from tell_plugins.recipe.findings import Finding, error, warning
from tell_plugins.recipe.lengths import Counted, count, max_length, own_tokenizer
from tell_plugins.recipe.settings import Settings
from tell_plugins.recipe.shapes import shape_of
from tell_plugins.recipe.tables import count_of

_LONGEST_LABEL = 40  # that is shown
_QUOTED = "[\"“„‘'`«]([^\"“”„‘’'`«»\n]{1,40})[\"”“’'`»]"
_OR = r"(?:\bor\b|\boder\b|\bou\b|\beller\b|\bили\b|或|/|\|)"
_QUOTED_ANSWERS = re.compile(rf"{_QUOTED}(?:\s*,\s*{_QUOTED})*\s*,?\s*{_OR}\s*{_QUOTED}")
_PLAIN_ANSWERS = re.compile(
    r"\b(?:answer|reply|respond|say|output|return|write)\b\W+"
    r"(?:(?:only|just|with|by|either|one|of|the|word|words)\W+){0,4}"
    r"(\w+)((?:\s*,\s*\w+)*)\s*,?\s+or\s+(\w+)",
    re.IGNORECASE,
)
_TASK, _GENERAL = "tell-control-task", "tell-control-general"
_SHOWN = 5


def check_mixture(checked: Checked) -> Iterator[Finding]:
    """Build the mixture; rows of it that stand twice, cannot be read, or are held-out queries."""
    if checked.spec is None or checked.found("tell-data-missing"):
        return
    mixture, where = build_mixture(checked.spec), checked.recipe.where("dataset")
    checked.mixture = mixture
    for source in mixture.sources:
        if source.duplicates:
            yield warning(
                "tell-data-duplicates",
                f"'{source.card.name}' holds {count_of(source.duplicates, 'duplicate row')}, "
                "which train as often as they stand there",
                source.rows.shown,
                "remove the copies, unless they are meant",
            )
        if source.rows.bad:
            yield _malformed(source)
    kept = sum(source.overlap_used or 0 for source in mixture.sources)
    if kept:
        yield warning(
            "tell-test-rows-train",
            f"{count_of(kept, 'general row')} trained on with a held-out query",
            where,
            "overlap=drop leaves them out",
        )
    if not mixture.overlap_checked and mixture.card.kind != GENERAL:
        yield warning(
            "tell-test-rows-missing",
            "test rows are not here, so nothing tells whether they are trained on",
            where,
            f"./run.sh data {mixture.card.name}",
        )


def _malformed(source: Drawn) -> Finding:
    first = ", ".join(str(bad.line) for bad in source.rows.bad[:5])
    more = ", ..." if source.dropped["malformed"] > 5 else ""
    return warning(
        "tell-data-malformed",
        f"{count_of(source.dropped['malformed'], 'malformed row')} of '{source.card.name}' left "
        f"out (lines {first}{more}): {source.rows.bad[0].reason}",
        source.rows.shown,
        "mend them, or leave it at that",
    )


def check_control_tokens(checked: Checked) -> Iterator[Finding]:
    """Errors for task rows, warnings for general rows; the known tokens where the model is away."""
    mixture, model = checked.mixture, checked.settings.text("model")
    if mixture is None:
        return
    tokenizer = own_tokenizer(model)
    own = checked.own_tokens = tokenizer.special_tokens() if tokenizer else None
    if mixture.task is not None:
        used = sorted(mixture.sources[0].used.tolist())
        yield from _task_findings(mixture.task, used, own)
    more = [token for token in own or () if token not in KNOWN]
    for source in mixture.sources:
        rows = source.rows
        if isinstance(rows, TaskRows):
            continue
        where = rows.shown
        if source.steering:
            text = f"{count_of(len(source.steering), 'row')} of '{source.card.name}' left out"
            some = source.steering[:_SHOWN]
            pairs = rows.texts(some)
            found = [
                (f"line {rows.lines[row]}", found_in("\n".join(pair)) or "")
                for row, pair in zip(some, pairs, strict=True)
            ]
            yield warning(
                _GENERAL,
                f"{text}: control tokens of chat models in them "
                f"({_tokens_shown(found, len(source.steering))})",
                where,
                f"{_remedy(found)}, or leave it at that",
            )
        if not more:
            continue
        left = int(np.isin(source.used, np.flatnonzero(rows.holding(any_of(more)))).sum())
        if left:
            text = f"{count_of(left, 'row')} of '{source.card.name}' hold tokens that steer {model}"
            yield warning(_GENERAL, text, where, "mend or remove them")


def _task_findings(
    task: TaskRows, used: Sequence[int], own: Sequence[str] | None
) -> Iterator[Finding]:
    tokens = KNOWN if own is None else own
    found = [
        (task.line(row), token)
        for row in used
        if (token := found_in(task.queries[row] + "\n" + task.responses[row], tokens))
    ]
    if not found:
        return
    text = f"{count_of(len(found), 'task row')} with control tokens "
    text += f"({_tokens_shown(found, len(found))})"
    where, remedy = task.shown, _remedy(found)
    if own is None:
        yield warning(
            _TASK, f"{text} of some chat models; the model's tokenizer is not here", where, remedy
        )
    else:
        yield error(
            _TASK, f"{text}: the model reads the end or beginning of a turn there", where, remedy
        )


def _tokens_shown(found: Sequence[tuple[str, str]], count: int) -> str:
    """The lines and tokens of the first rows of `count`."""
    shown = ", ".join(f"{line}: {token}" for line, token in found[:_SHOWN])
    return shown + (" ..." if count > _SHOWN else "")


def _remedy(found: Sequence[tuple[str, str]]) -> str:
    struck = any(token in ("<s>", "</s>") for _, token in found)
    html = " (text that HTML strikes through: as <del> in place of <s>)" if struck else ""
    return f"write them otherwise, such as with a blank inside{html}"


def check_shares(checked: Checked) -> Iterator[Finding]:
    """More task entries than general ones; none at all is plain SFT, which is meant."""
    if checked.spec is None or checked.spec.kl or checked.entries is None:  # fewer hold than teach
        return
    task, general = checked.entries
    if 0 < general < task:
        yield warning(
            "tell-general-few",
            f"{task:,} task rows among {general:,} general rows: the task is the larger part",
            checked.recipe.where("dataset"),
            "more general rows (general=40x is forty a task row), or general=0 for plain SFT",
        )


def check_anchor(checked: Checked) -> Iterator[Finding]:
    """Answers that the anchor names and no row gives."""
    task = checked.mixture.task if checked.mixture is not None else None
    if task is None or not task.anchor.text:
        return
    answers = _answers(task)
    named = _named(task.anchor.text, quoted_only=task.card.metric == "json") if answers else []
    missing = [name for name in named if name not in answers]
    if missing:
        few = sorted(answer for answer in answers if len(answer) <= _LONGEST_LABEL)[:8]
        names = " and ".join(f"'{name}'" for name in dict.fromkeys(missing))
        yield warning(
            "tell-anchor-answers",
            f"the anchor names {names} as an answer, and no row of '{task.card.name}' answers so",
            task.shown,
            "let anchor and rows say the same, letter by letter",
            "answers of the rows: " + ", ".join(f"'{answer}'" for answer in few),
        )


def _answers(task: TaskRows) -> set[str]:
    """The labels of a task, or the keys and values of JSON answers; empty for answers of others."""
    if task.card.metric == "label":
        return {response.strip() for response in task.responses}
    values = []
    if task.card.metric == "json":
        with contextlib.suppress(ValueError):  # the scorers tell what is no JSON
            values = [parse_json(response, nan=True) for response in task.responses]
    return set(_scalars(values))


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


def check_lengths(checked: Checked) -> Iterator[Finding]:
    """Count the rows; those over `max_length`, by the model's own tokenizer where it is here."""
    settings, mixture = checked.settings, checked.mixture
    limit = checked.limit = max_length(settings)
    if mixture is None or (limit is not None and limit < 1):
        return
    counter = own_tokenizer(settings.text("model")) or mixture.counter
    if counter is not None:
        checked.counted = count(mixture, counter, settings, limit)
        if limit is not None:
            yield from _over(checked.counted, settings, limit)


def _over(counted: Counted, settings: Settings, limit: int) -> Iterator[Finding]:
    """Rows over the limit, or near it."""
    shape = shape_of(settings.text("model"))
    positions = shape.positions if shape is not None and shape.positions else math.inf
    cut = settings.text("truncation_strategy") in ("left", "right")
    strict = settings.flag("strict") and not cut
    by = counted.tokenizer + ("" if counted.own else "; the model's own may count otherwise")
    # a run is not stopped over what another tokenizer counts
    lost = error if counted.own and not cut else warning
    longer = _longer(counted, positions)
    if counted.over:
        text = f"{_rows_named(counted.over)} over max_length {limit:,} (by {by}) and would be "
        text += "cut" if cut else "lost"
        yield lost("tell-row-long", text, counted.file, longer + " or shorten the rows")
    if counted.near:
        text = (
            f"{_rows_named(counted.near)} near max_length {limit:,}: with the chat template "
            f"around them they may be over it (by {by})"
        )
        yield warning("tell-row-near", text, counted.file, longer + " to be safe")
    end = "; 'strict: true' stops the run there" if strict else " and would be cut or dropped"
    for name, number in counted.general_over.items():
        text = f"{count_of(number, 'general row')} of '{name}' over max_length {limit:,} (by {by})"
        yield (lost if strict else warning)(
            "tell-general-long",
            text + end,
            settings.recipe.where("max_length"),
            f"raise max_length, or give card '{name}' a smaller max_tokens",
        )


def _rows_named(rows: list[tuple[str, int]]) -> str:
    """`2 task rows (line 5: 2,231 tokens, line 9: 2,300 tokens) are`"""
    each = ", ".join(f"{line}: {tokens:,} tokens" for line, tokens in rows)
    return f"{count_of(len(rows), 'task row')} ({each}) {'are' if len(rows) > 1 else 'is'}"


def _longer(counted: Counted, positions: float) -> str:
    """The remedy for rows over the limit, which must not lead beyond the model's positions.

    A round limit that holds the longest row, with a margin where another tokenizer counted.
    """
    longest = counted.longest * (1.0 if counted.own else 1.1)
    enough = int(-(-longest // 256) * 256)
    if counted.longest <= positions:
        return f"raise max_length to {min(enough, positions):.0f}"
    return f"take a model with more than {positions:,.0f} positions (max_length {enough})"
