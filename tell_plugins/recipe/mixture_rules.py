"""Rules on a mixture that stands: its rows, their tokens, its shares and what its anchor says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tell_plugins.core.mixture import GENERAL, STEERING, Drawn, build_mixture
from tell_plugins.core.sources import TaskRows
from tell_plugins.core.text import KNOWN, any_of, found_in
from tell_plugins.recipe.checked import Checked, Finding, error, warning
from tell_plugins.recipe.lengths import Counted, count, long_rows, max_length, own_tokenizer
from tell_plugins.recipe.recipes import Recipe
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
_OTHERWISE = "write them otherwise, such as with a blank inside (struck-through HTML: as <del>)"


def check_mixture(checked: Checked) -> Iterator[Finding]:
    """Build the mixture; rows of it that stand twice, cannot be read, or are held-out queries."""
    if checked.spec is None or checked.found("tell-data-missing"):
        return
    mixture, where = build_mixture(checked.spec), checked.recipe.where("dataset")
    checked.mixture = mixture
    for source in mixture.sources:
        if source.duplicates:
            found = (
                f"'{source.card.name}' holds {count_of(source.duplicates, 'duplicate row')}, "
                "which train as often as they stand there"
            )
            remedy = "remove the copies, unless they are meant"
            yield warning("tell-data-duplicates", found, source.rows.shown, remedy)
        if source.rows.bad:
            yield _malformed(source)
    kept = sum(source.overlap_used or 0 for source in mixture.sources)
    if kept:
        found = f"{count_of(kept, 'general row')} trained on with a held-out query"
        yield warning("tell-test-rows-train", found, where, "overlap=drop leaves them out")
    if not mixture.overlap_checked and mixture.card.kind != GENERAL:
        found = "test rows are not here, so nothing tells whether they are trained on"
        yield warning("tell-test-rows-missing", found, where, f"./run.sh data {mixture.card.name}")


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
    mixture, model = checked.mixture, checked.recipe.text("model")
    if mixture is None:
        return
    tokenizer = own_tokenizer(model)
    own = checked.own_tokens = tokenizer.special_tokens() if tokenizer else None
    more = any_of(token for token in own or () if token not in KNOWN)
    for source in mixture.sources:
        rows = source.rows
        if isinstance(rows, TaskRows):
            yield from _steering_task_rows(rows, sorted(source.used.tolist()), own)
            continue
        if dropped := source.dropped.get(STEERING):
            text = f"{count_of(dropped, 'row')} of '{source.card.name}' left out: control tokens "
            text += "of chat models in them"
            yield warning(_GENERAL, text, rows.shown, f"{_OTHERWISE}, or leave it at that")
        if left := int(rows.holding(more)[source.used].sum()) if more else 0:
            text = f"{count_of(left, 'row')} of '{source.card.name}' hold tokens that steer {model}"
            yield warning(_GENERAL, text, rows.shown, _OTHERWISE)


def _steering_task_rows(
    task: TaskRows, used: Sequence[int], own: Sequence[str] | None
) -> Iterator[Finding]:
    tokens = KNOWN if own is None else own
    found = [
        f"{task.line(row)}: {token}"
        for row in used
        if (token := found_in(task.queries[row] + "\n" + task.responses[row], tokens))
    ]
    shown = ", ".join(found[:_SHOWN]) + (" ..." if found[_SHOWN:] else "")
    text = f"{count_of(len(found), 'task row')} with control tokens ({shown})"
    if found and own is None:
        text += " of some chat models; the model's tokenizer is not here"
        yield warning(_TASK, text, task.shown, _OTHERWISE)
    elif found:
        text += ": the model reads the end or beginning of a turn there"
        yield error(_TASK, text, task.shown, _OTHERWISE)


def check_shares(checked: Checked) -> Iterator[Finding]:
    """More task entries than general ones; none at all is plain SFT, which is meant."""
    if checked.spec is None or checked.spec.kl or checked.entries is None:  # fewer hold than teach
        return
    task, general = checked.entries
    if 0 < general < task:
        found = f"{task:,} task rows among {general:,} general rows: the task is the larger part"
        remedy = "more general rows (general=40x is forty a task row), or general=0 for plain SFT"
        yield warning("tell-general-few", found, checked.recipe.where("dataset"), remedy)


def check_anchor(checked: Checked) -> Iterator[Finding]:
    """Answers that the anchor names and no row gives."""
    task = checked.mixture.task if checked.mixture is not None else None
    if task is None or not task.anchor.text:
        return
    named = _named(task.anchor.text, quoted_only=task.card.metric != "label")
    answers = "\n".join(task.responses)
    missing = [name for name in named if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", answers)]
    if missing and task.card.metric in ("label", "json"):
        few = sorted({answer for answer in task.responses if len(answer) <= _LONGEST_LABEL})[:8]
        names = " and ".join(f"'{name}'" for name in dict.fromkeys(missing))
        yield warning(
            "tell-anchor-answers",
            f"the anchor names {names} as an answer, and no row of '{task.card.name}' answers so",
            task.shown,
            "let anchor and rows say the same, letter by letter",
            ("answers of the rows: " + ", ".join(f"'{answer}'" for answer in few)) if few else None,
        )


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
    recipe, mixture = checked.recipe, checked.mixture
    limit = checked.limit = max_length(recipe)
    if mixture is None or (limit is not None and limit < 1):
        return
    counter = own_tokenizer(recipe.text("model")) or mixture.counter
    if counter is None:
        return
    counted = checked.counted = count(mixture, counter, recipe)
    if limit is not None:
        long = long_rows(mixture, counted, limit)
        for source, rows in zip(mixture.sources, long, strict=True):
            yield from _long(recipe, counted, limit, source, rows)


def _long(
    recipe: Recipe, counted: Counted, limit: int, source: Drawn, rows: dict[int, int]
) -> Iterator[Finding]:
    """What is lost of a source's rows over the limit, or near it."""
    cut = recipe.text("truncation_strategy") in ("left", "right")
    stops = recipe.flag("strict") and not cut
    # a run is not stopped over what another tokenizer counts
    lost = error if counted.own and not cut else warning
    by = f"by {counted.tokenizer}{'' if counted.own else ', the model may count otherwise'}"
    longest = counted.longest * (1.0 if counted.own else 1.1)
    remedy = f"raise max_length to {-(-longest // 256) * 256:.0f}"
    over = {row: tokens for row, tokens in rows.items() if tokens > limit}
    near = {row: tokens for row, tokens in rows.items() if tokens <= limit}
    if not isinstance(source.rows, TaskRows):
        if over:
            end = (
                "; 'strict: true' stops the run there" if stops else " and would be cut or dropped"
            )
            name, number = source.card.name, count_of(len(over), "general row")
            text = f"{number} of '{name}' over max_length {limit:,} ({by}){end}"
            where, remedy = recipe.where("max_length"), f"{remedy}, or card '{name}' max_tokens"
            yield (lost if stops else warning)("tell-general-long", text, where, remedy)
        return
    where = source.rows.shown
    if over:
        text = f"{_named_rows(source.rows, over)} over max_length {limit:,} ({by}) and would be "
        text += "cut" if cut else "lost"
        yield lost("tell-row-long", text, where, f"{remedy}, or shorten the rows")
    if near:
        text = f"{_named_rows(source.rows, near)} near max_length {limit:,}: with the chat "
        text += f"template around them they may be over it ({by})"
        yield warning("tell-row-near", text, where, f"{remedy} to be safe")


def _named_rows(task: TaskRows, rows: dict[int, int]) -> str:
    """`2 task rows (line 5: 2,231 tokens, line 9: 2,300 tokens) are`"""
    each = ", ".join(f"{task.line(row)}: {tokens:,} tokens" for row, tokens in rows.items())
    return f"{count_of(len(rows), 'task row')} ({each}) {'are' if len(rows) > 1 else 'is'}"


RULES = (check_mixture, check_control_tokens, check_anchor, check_shares)
