"""Rows that hold the model's own control tokens: an answer would end in its middle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np

from tell_plugins.core import paths
from tell_plugins.core.control_tokens import KNOWN, any_of, found_in
from tell_plugins.core.mixture import Mixture
from tell_plugins.core.sources import TaskRows
from tell_plugins.recipe.findings import Finding, error, warning
from tell_plugins.recipe.lengths import own_tokenizer
from tell_plugins.recipe.tables import count_of

_TASK, _GENERAL = "tell-control-task", "tell-control-general"
_SHOWN = 5


def control_findings(mixture: Mixture, model: str) -> Iterator[Finding]:
    """Errors for task rows, warnings for general rows; the known tokens where the model is away."""
    own = own_tokens(model)
    if mixture.task is not None:
        used = sorted(mixture.sources[0].used.tolist())
        yield from _task_findings(mixture.task, used, own)
    more = [token for token in own or () if token not in KNOWN]
    for source in mixture.sources:
        rows = source.rows
        if isinstance(rows, TaskRows):
            continue
        where = paths.shown(rows.file)
        if source.steering:
            text = f"{count_of(len(source.steering), 'row')} of '{source.card.name}' left out"
            some = source.steering[:_SHOWN]
            pairs = rows.texts(some).pairs()
            found = [
                (int(rows.lines[row]), found_in("\n".join(pair)) or "")
                for row, pair in zip(some, pairs, strict=True)
            ]
            yield warning(
                _GENERAL,
                f"{text}: control tokens of chat models in them "
                f"({_shown(found, len(source.steering))})",
                where,
                f"{_remedy(found)}, or leave it at that",
            )
        if not more:
            continue
        left = int(np.isin(source.used, np.flatnonzero(rows.holding(any_of(more)))).sum())
        if left:
            text = f"{count_of(left, 'row')} of '{source.card.name}' hold tokens that steer {model}"
            yield warning(_GENERAL, text, where, "mend or remove them")


def own_tokens(model: str) -> list[str] | None:
    """The control tokens of a model on this machine, None where its tokenizer is not at hand."""
    counter = own_tokenizer(model)
    if counter is None:
        return None
    saved = json.loads(counter.path.read_text(encoding="utf-8"))
    added = saved.get("added_tokens") or ()
    return [token["content"] for token in added if token.get("special") and token.get("content")]


def _task_findings(
    task: TaskRows, used: Sequence[int], own: Sequence[str] | None
) -> Iterator[Finding]:
    tokens = KNOWN if own is None else own
    found = [
        (int(task.lines[row]), token)
        for row in used
        if (token := found_in(task.queries[row] + "\n" + task.responses[row], tokens))
    ]
    if not found:
        return
    text = f"{count_of(len(found), 'task row')} with control tokens ({_shown(found, len(found))})"
    where, remedy = paths.shown(task.file), _remedy(found)
    if own is None:
        yield warning(
            _TASK, f"{text} of some chat models; the model's tokenizer is not here", where, remedy
        )
    else:
        yield error(
            _TASK, f"{text}: the model reads the end or beginning of a turn there", where, remedy
        )


def _shown(found: Sequence[tuple[int, str]], count: int) -> str:
    """The lines and tokens of the first rows of `count`."""
    shown = ", ".join(f"line {line}: {token}" for line, token in found[:_SHOWN])
    return shown + (" ..." if count > _SHOWN else "")


def _remedy(found: Sequence[tuple[int, str]]) -> str:
    struck = any(token in ("<s>", "</s>") for _, token in found)
    html = " (text that HTML strikes through: as <del> in place of <s>)" if struck else ""
    return f"write them otherwise, such as with a blank inside{html}"
