"""Rules on what a recipe trains on: the dataset string, files, rows, anchor, lengths and steps."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence

from tell_plugins.bridge import mixed_use
from tell_plugins.core.anchors import RESERVED, anchor_files
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import Problems, raise_all, unknown
from tell_plugins.core.mixture import (
    GENERAL,
    HELD_OUT,
    STEERING,
    Drawn,
    build_mixture,
    counter_for,
    general_card,
    refuse_measuring,
    refuse_times_nothing,
)
from tell_plugins.core.schemas import card_validator
from tell_plugins.core.shown import count_of
from tell_plugins.core.sources import TaskRows, need_file
from tell_plugins.core.spec import NONE, PREFIX, Spec, parse_spec
from tell_plugins.core.text import KNOWN, any_of, found_in
from tell_plugins.recipe.checked import Checked, Finding, error, warning
from tell_plugins.recipe.models import count, max_length, own_tokenizer, rows_from
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.schedule import Plan, Unmodelled, exposure, plan, training_of, why_no_op


def check_dataset(checked: Checked) -> None:
    """The dataset string is good, and known from here on."""
    checked.spec = read_dataset(checked.recipe)


def read_dataset(recipe: Recipe) -> Spec:
    """The parsed dataset string. Raises UserError with everything that is wrong with it."""
    text, where = recipe.dataset_text, recipe.where("dataset")
    problems = Problems()
    spec = card = None
    with problems:
        spec = parse_spec(text, where=where)
    name = text.split("::", 1)[-1][len(PREFIX) :].partition("#")[0].partition(":")[0]
    with problems:
        card = load_card(name) if re.fullmatch(r"[\w.-]+", name) else None
    if spec is not None and card is not None:
        _add_misfits(problems, spec, card, f"{where} '{text}'")
    raise_all(problems)
    assert spec is not None  # no error, so it was parsed
    return spec


def _add_misfits(problems: Problems, spec: Spec, card: Card, where: str) -> None:
    """Add what the string asks of the card and the card does not have."""
    place = f"{where}, key 'split'"
    problems += [
        unknown("split", n, card.splits, place) for n in spec.splits if n not in card.splits
    ]
    with problems:
        mixed_use.refuse_held_out(spec, place)
    if card.kind == GENERAL:
        with problems:
            refuse_measuring(card, where)
        return
    with problems:
        refuse_times_nothing(spec, spec.general_of(card)[0], where=where)
    anchors = [*RESERVED, *anchor_files(card)]
    if spec.anchor not in anchors:
        problems.append(unknown("value", spec.anchor, anchors, f"{where}, key 'anchor'"))
    for name in spec.sources or ():
        with problems:
            general_card(name, f"{where}, key 'from'")


def check_schema(checked: Checked) -> None:
    """The answer schema can be applied: before anything is built, trained or asked by it."""
    if checked.spec is not None:
        card_validator(load_card(checked.spec.card))


def check_patterns(checked: Checked) -> None:
    """The patterns of the answer schema are done with each answer of the training rows in time."""
    task = checked.mixture.task if checked.mixture is not None else None
    if task is not None and not checked.found("tell-answer-schema"):
        try_patterns(task.card, task.responses)


def try_patterns(card: Card, responses: Sequence[str]) -> None:
    """Raise UserError for a pattern of the answer schema that takes too long on an answer."""
    validator = card_validator(card)
    if validator is None:
        return
    for response in responses:
        with contextlib.suppress(ValueError, RecursionError):  # no JSON: others tell that
            list(validator.iter_errors(json.loads(response)))


def check_files(checked: Checked) -> None:
    """The files of the mixture are on this machine; each error names the command that gets one."""
    spec = checked.spec
    if spec is None:
        return
    card = load_card(spec.card)
    amount, names = spec.general_of(card)
    sources = [load_card(name) for name in names]
    wanted = card.kind == GENERAL or spec.task != NONE
    needed = [(card, name) for name in spec.splits] if wanted else []
    if card.kind != GENERAL and spec.overlap == "drop":
        needed += [(card, name) for name in HELD_OUT if name in card.splits]
    problems = Problems()
    for owner, name in (*needed, *((source, "train") for source in sources)):
        with problems:
            need_file(owner, name)
    with problems:
        counter_for(spec, [spec.task, amount], [card, *sources])
    raise_all(problems)


# --- its rows

_SHOWN = 5  # of rows with control tokens
_OTHERWISE = "write them otherwise, such as with a blank inside (struck-through HTML: as <del>)"


def check_mixture(checked: Checked) -> Iterator[Finding]:
    """Build the mixture; rows of it that stand twice, cannot be read, or are held-out queries."""
    if checked.spec is None or checked.found("tell-data-missing"):
        return
    mixture, where = build_mixture(checked.spec), checked.recipe.where("dataset")
    checked.mixture = mixture
    for source in mixture.sources:
        name, bad, malformed = source.card.name, source.rows.bad, source.dropped.get("malformed", 0)
        if source.duplicates:
            rows = count_of(source.duplicates, "duplicate row")
            found = f"'{name}' holds {rows}, which train as often as they stand there"
            remedy = "remove the copies, unless they are meant"
            yield warning("tell-data-duplicates", found, source.rows.shown, remedy)
        if bad:
            lines = ", ".join(str(row.line) for row in bad[:5]) + (", ..." if malformed > 5 else "")
            found = f"{count_of(malformed, 'malformed row')} of '{name}' left out (lines {lines}): "
            remedy = "mend them, or leave it at that"
            yield warning("tell-data-malformed", found + bad[0].reason, source.rows.shown, remedy)
    kept = sum(source.overlap_used or 0 for source in mixture.sources)
    if kept:
        found = f"{count_of(kept, 'general row')} trained on with a held-out query"
        yield warning("tell-test-rows-train", found, where, "overlap=drop leaves them out")
    if not mixture.overlap_checked and mixture.card.kind != GENERAL:
        found = "test rows are not here, so nothing tells whether they are trained on"
        yield warning("tell-test-rows-missing", found, where, f"./run.sh data {mixture.card.name}")


def check_control_tokens(checked: Checked) -> Iterator[Finding]:
    """Errors for task rows, warnings for general rows; the known tokens where the model is away."""
    mixture, model = checked.mixture, checked.recipe.text("model")
    if mixture is None:
        return
    tokenizer = own_tokenizer(model)
    own = checked.own_tokens = tokenizer.special_tokens() if tokenizer else None
    more = any_of(token for token in own or () if token not in KNOWN)
    for source in mixture.sources:
        rows, name = source.rows, source.card.name
        if isinstance(rows, TaskRows):
            yield from _steering_task_rows(rows, source, own)
            continue
        dropped = source.dropped.get(STEERING)
        left = int(rows.holding(more)[source.used].sum()) if more else 0
        if dropped:
            text = f"{count_of(dropped, 'row')} of '{name}' left out: control tokens of chat models"
            remedy = f"{_OTHERWISE}, or leave it at that"
            yield warning("tell-control-general", f"{text} in them", rows.shown, remedy)
        if left:
            text = f"{count_of(left, 'row')} of '{name}' hold tokens that steer {model}"
            yield warning("tell-control-general", text, rows.shown, _OTHERWISE)


def _steering_task_rows(task: TaskRows, source: Drawn, own: list[str] | None) -> Iterator[Finding]:
    tokens = KNOWN if own is None else own
    held = {n: found_in(f"{task.queries[n]}\n{task.responses[n]}", tokens) for n in source.used}
    found = [f"{task.line(row)}: {held[row]}" for row in sorted(held) if held[row]]
    if not found:
        return
    shown = ", ".join(found[:_SHOWN]) + (" ..." if found[_SHOWN:] else "")
    tell, why = error, ": the model reads the end or beginning of a turn there"
    if own is None:
        tell, why = warning, " of some chat models; the model's tokenizer is not here"
    text = f"{count_of(len(found), 'task row')} with control tokens ({shown}){why}"
    yield tell("tell-control-task", text, task.shown, _OTHERWISE)


def check_shares(checked: Checked) -> Iterator[Finding]:
    """More task entries than general ones; none at all is plain SFT, which is meant."""
    if checked.spec is None or checked.spec.kl or checked.entries is None:  # fewer hold than teach
        return
    task, general = checked.entries
    if 0 < general < task:
        found = f"{task:,} task rows among {general:,} general rows: the task is the larger part"
        remedy = "more general rows (general=40x is forty a task row), or general=0 for plain SFT"
        yield warning("tell-general-few", found, checked.recipe.where("dataset"), remedy)


# --- what the anchor says

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


def check_anchor(checked: Checked) -> Iterator[Finding]:
    """Answers that the anchor lists with an "or" and no row gives."""
    task = checked.mixture.task if checked.mixture is not None else None
    if task is None or task.card.metric not in ("label", "json"):
        return
    text, named = task.anchor.text, list[str]()
    for match in _QUOTED_ANSWERS.finditer(text):
        named += re.findall(_QUOTED, match[0])
    for match in _PLAIN_ANSWERS.finditer(text) if task.card.metric == "label" else ():
        named += [match[1], *re.findall(r"\w+", match[2]), match[3]]
    answers = "\n".join(task.responses)
    missing = [name for name in named if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", answers)]
    if missing:
        few = sorted({answer for answer in task.responses if len(answer) <= _LONGEST_LABEL})[:8]
        names = " and ".join(f"'{name}'" for name in dict.fromkeys(missing))
        found = f"the anchor names {names} as an answer, and no row of '{task.card.name}' answers "
        remedy = "let anchor and rows say the same, letter by letter"
        allowed = ("answers of the rows: " + ", ".join(f"'{one}'" for one in few)) if few else None
        yield warning("tell-anchor-answers", found + "so", task.shown, remedy, allowed)


# --- rows that are too long

_NEAR = 0.9  # of the limit; from here on the template, or another tokenizer, may go beyond it


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
        long = rows_from(mixture, counted, _NEAR * limit)
        for source, rows in zip(mixture.sources, long, strict=True):
            if rows:
                yield from _long(checked, limit, source, rows)


def _long(checked: Checked, limit: int, source: Drawn, rows: dict[int, int]) -> Iterator[Finding]:
    """What is lost of a source's rows over the limit, or near it."""
    recipe, counted, name = checked.recipe, checked.counted, source.card.name
    assert counted is not None
    cut = recipe.text("truncation_strategy") in ("left", "right")
    stops = recipe.flag("strict") and not cut
    # a run is not stopped over what another tokenizer counts
    lost = error if counted.own and not cut else warning
    by = f"by {counted.tokenizer}{'' if counted.own else ', the model may count otherwise'}"
    longest = counted.longest * (1.0 if counted.own else 1.1)
    remedy = f"raise max_length to {-(-longest // 256) * 256:.0f}"
    over = {row: tokens for row, tokens in rows.items() if tokens > limit}
    near = {row: tokens for row, tokens in rows.items() if tokens <= limit}
    if isinstance(source.rows, TaskRows):
        where = source.rows.shown
        if over:
            text = f"{_named_rows(source.rows, over)} over max_length {limit:,} ({by}) and would "
            text += "be cut" if cut else "be lost"
            yield lost("tell-row-long", text, where, f"{remedy}, or shorten the rows")
        if near:
            text = f"{_named_rows(source.rows, near)} near max_length {limit:,}: with the chat "
            text += f"template around them they may be over it ({by})"
            yield warning("tell-row-near", text, where, f"{remedy} to be safe")
    elif over:
        end = "; 'strict: true' stops the run there" if stops else " and would be cut or dropped"
        number, where = count_of(len(over), "general row"), recipe.where("max_length")
        text = f"{number} of '{name}' over max_length {limit:,} ({by}){end}"
        remedy = f"{remedy}, or card '{name}' max_tokens"
        yield (lost if stops else warning)("tell-general-long", text, where, remedy)


def _named_rows(task: TaskRows, rows: dict[int, int]) -> str:
    """`2 task rows (line 5: 2,231 tokens, line 9: 2,300 tokens) are`"""
    each = ", ".join(f"{task.line(row)}: {tokens:,} tokens" for row, tokens in rows.items())
    return f"{count_of(len(rows), 'task row')} ({each}) {'are' if len(rows) > 1 else 'is'}"


# --- steps

_NOTHING = 0.005  # rows at full learning rate


def check_steps(checked: Checked) -> Iterator[Finding]:
    """Lay out the run's steps, and what is wrong with them."""
    if checked.entries is None:
        return
    where, task = checked.recipe.where, checked.is_task
    try:
        steps = checked.plan = plan(sum(checked.entries), training_of(checked.recipe))
    except Unmodelled as problem:
        place = where(problem.where)
        yield warning("tell-schedule-unknown", problem.found, place, problem.remedy)
        return
    if task is not None and task.any():
        checked.exposure = exposure(steps, task)
    rate, reason = steps.training.learning_rate, why_no_op(steps)
    if reason:
        remedy = "more rows, more epochs, a smaller batch, or warmup_ratio: 0 (the paper's SFT "
        remedy += "baseline at 15 rows is this very case)"
        found = f"this run is a no-op: {reason}"
        yield warning("tell-no-op", found, where(), remedy if rate else "a learning_rate above 0")
    elif steps.peak < 1:
        found = f"the learning rate never reaches {rate:g}: at most {steps.peak:.0%} of it"
        yield warning("tell-rate-low", found, where("warmup_ratio"), "fewer warm-up steps")
    elif checked.exposure is not None and checked.exposure.weight < _NOTHING:
        found = f"exposure 0.00: the {checked.entries[0]:,} task rows stand in steps of learning "
        found += "rate 0, so the run does not learn the task"
        remedy = "order=shuffle or order=even, fewer warm-up steps, or more epochs"
        yield warning("tell-exposure-zero", found, where("dataset"), remedy)
    if steps.seen < steps.entries:
        yield from _unseen(checked, steps)


def _unseen(checked: Checked, steps: Plan) -> Iterator[Finding]:
    """Rows that no step holds: ms-swift says nothing about them."""
    unseen, mixture = steps.entries - steps.seen, checked.mixture
    task = checked.exposure.unseen if checked.exposure else 0
    if mixture is not None and mixture.spec.repeat > 1:  # copies may train elsewhere
        parts = (mixture.is_task, mixture.origin, mixture.row)
        rows = list(zip(*(part.tolist() for part in parts), strict=True))
        lost = set(rows[steps.seen :]) - set(rows[: steps.seen])
        unseen, task = len(lost), sum(is_task for is_task, *_ in lost)
    if not unseen:
        return
    where, reason = checked.recipe.where(), "dataloader_drop_last is true"
    if steps.seen < steps.served:
        where = checked.recipe.where("max_steps")
        reason = f"{steps.steps} steps end before the mixture does"
    elif steps.training.world > 1:
        reason = f"{steps.training.world} processes each get the same number of rows"
    text = f"{count_of(unseen, 'row')} never trained on, {task} of task data: {reason}"
    tell = error if task else warning
    yield tell("tell-rows-unseen", text, where, "more steps, or amounts that fit")
