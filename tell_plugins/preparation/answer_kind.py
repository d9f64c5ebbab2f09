"""What the answers of an own task are: JSON, closed labels, numbers, a translation or free text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.numbers import final_number, whole_number
from tell_plugins.core.text import normalise
from tell_plugins.preparation.answer_schema import LONGEST_VALUE, MOST_VALUES, strict_json
from tell_plugins.preparation.forms import Pair, TaskFile, lines_named, told
from tell_plugins.preparation.json_repair import HINT, json_of_python

METRICS = ("json", "label", "translation", "number", "text")
MOST_LABELS = 150  # more different answers are free text
_FEWEST_ROWS = 10  # fewer show nothing by answers that come again
_FEW_BROKEN = 0.1  # a share of responses that are no JSON, up to which they are mistakes
_SHOWN = 5
_WHOLE = re.compile(r"[-+]?\d+(\.0+)?")
_LIKE_A_NUMBER = re.compile(r"[-+]?\d[\d.,'\s]*")


def kind_of(file: TaskFile) -> str:
    """The metric that the responses of a file call for, where the user names none.

    Raises UserError where nearly all are JSON and the others, or all, are broken.
    """
    responses = [pair.response for pair in file.pairs]
    if all(_json_problem(text) is None for text in responses):
        return "json"
    refuse_broken_json(file)
    if are_labels(responses):
        return "label"
    return "number" if all(whole_number(text) is not None for text in responses) else "text"


def are_labels(texts: Sequence[str]) -> bool:
    """Whether answers are closed labels: a few short ones, most of which come again.

    Of numbers at most `MOST_VALUES` different ones are labels, and none with decimals.
    """
    counts = Counter(normalise(text) for text in texts)
    again = sum(count > 1 for count in counts.values())
    numbers = all(whole_number(text) is not None for text in counts)
    return (
        len(texts) >= _FEWEST_ROWS
        and 2 <= len(counts) <= (MOST_VALUES if numbers else MOST_LABELS)
        and 2 * len(counts) <= len(texts)
        and 2 * again >= len(counts)
        and all(len(text) <= LONGEST_VALUE and "\n" not in text.strip() for text in texts)
        and (not numbers or all(_WHOLE.fullmatch(text) for text in counts))
    )


def number_hint(file: TaskFile) -> list[str]:
    """A note where answers look like numbers and are none that can be read whole."""
    like = [pair for pair in file.pairs if _LIKE_A_NUMBER.fullmatch(pair.response.strip())]
    unread = [pair for pair in like if whole_number(pair.response) is None]
    if not unread or 2 * len(like) < len(file.pairs):
        return []
    return [
        f"{len(unread)} answers look like numbers in a notation that is not read, the first at "
        f"line {unread[0].line}: '{unread[0].response.strip()}'; all are scored as text. Write "
        "1234.5 or 1,234.5 to have them scored as numbers"
    ]


def need_numbers(file: TaskFile) -> None:
    """UserError when a response ends with no number that can be read whole."""
    without = [pair for pair in file.pairs if final_number(pair.response) is None]
    if without:
        raise UserError(
            f"metric 'number', but {len(without)} of {len(file.pairs)} responses end with none; "
            f"the first is at line {without[0].line}",
            where=paths.shown(file.path),
            allowed="a response that ends with `#### <number>`, or a number: 12.5 or 1,234.5",
            remedy="correct the rows, or name another --metric",
        )


def _json_problem(text: str) -> str | None:
    """Why a response is no JSON object or list as the scorers read it; None when it is one."""
    try:
        value = strict_json(text)
    except ValueError as error:
        return str(error)
    return None if isinstance(value, dict | list) else "no object or list"


def _broken_json(file: TaskFile, surely: bool = False) -> list[tuple[Pair, str]]:
    """Responses that are no JSON, and why, where JSON is meant: `surely`, or by all others."""
    problems = [(pair, _json_problem(pair.response)) for pair in file.pairs]
    broken = [(pair, problem) for pair, problem in problems if problem is not None]
    meant = [pair for pair, problem in broken if _looks_like_json(pair.response)]
    total = len(file.pairs)
    few = len(broken) <= total * _FEW_BROKEN
    if surely or few or (2 * (total - len(broken) + len(meant)) > total and meant):
        return broken
    return []


def with_json(file: TaskFile) -> TaskFile:
    """The file with answers that are Python's dicts and lists as JSON; a note says which."""
    pairs, changed = [], []
    for pair in file.pairs:
        written = json_of_python(pair.response) if _json_problem(pair.response) else None
        if written is not None:
            changed.append((pair, written))
            pair = pair._replace(response=written)
        pairs.append(pair)
    note = f"--repair-json: no answer of {file.path.name} is a Python dict or list"
    if changed:
        first, written = changed[0]
        lines = lines_named([pair.line for pair, _ in changed], None)
        note = (
            f"repaired: {len(changed)} answers of {file.path.name} are Python's and are written "
            f"as JSON, {lines}; the first: {first.response.strip()}  ->  {written}"
        )
    return replace(file, pairs=pairs, notes=(*file.notes, note))


def without_broken_json(file: TaskFile, *, surely: bool, bare_labels: bool) -> TaskFile:
    """The file without answers that are broken JSON, with a note that lists them.

    They are JSON `surely`, or where most are. `bare_labels` keeps those that do not look like it,
    as rows that only test may. A file of which nothing would be left stays as it is.
    """
    problems: dict[str, list[int]] = {}
    broken = set()
    for pair, problem in _broken_json(file, surely):
        if _looks_like_json(pair.response) or not bare_labels:
            broken.add(pair)
            problems.setdefault(f"no JSON ({problem})", []).append(pair.line)
    kept = [pair for pair in file.pairs if pair not in broken]
    if not broken or not kept:
        return file
    count = len(file.pairs) - len(kept)
    note = f"left out: {count} rows of {file.path.name}: {told(problems, None)}"
    return replace(file, pairs=kept, notes=(*file.notes, note))


def refuse_broken_json(file: TaskFile) -> None:
    """Raise UserError where the responses are JSON but for mistakes in a few, or in all."""
    broken = _broken_json(file)
    if not broken:
        return
    lines = "; ".join(f"line {pair.line}: {problem}" for pair, problem in broken[:_SHOWN])
    hint = HINT if any(json_of_python(pair.response) for pair, _ in broken) else ""
    raise UserError(
        f"{len(broken)} of {len(file.pairs)} responses are no JSON object: {lines}"
        + (" ..." if len(broken) > _SHOWN else ""),
        where=paths.shown(file.path),
        remedy=f"{hint}mend them; --drop-broken leaves them out; --metric text where answers need "
        "not be JSON",
    )


def _looks_like_json(text: str) -> bool:
    text = text.strip()
    return (text[:1], text[-1:]) in (("{", "}"), ("[", "]"))


# ------------------------------------------------------------------------- one spelling


def one_spelling(
    files: dict[str, TaskFile],
    label_in: Callable[[Pair], str | None],
    written: Callable[[Pair, str], Pair],
    clean: bool,
) -> None:
    """Bring labels that differ only in blanks, case or Unicode form to their most frequent form.

    Raises UserError that names them unless `clean` says to. Blanks around labels that have no
    other form are taken off unasked.
    """
    train = [label for pair in files["train"].pairs if (label := label_in(pair)) is not None]
    others = [label_in(pair) for file in files.values() for pair in file.pairs]
    forms = Counter(train) + Counter(label for label in others if label is not None)
    groups: dict[str, list[str]] = {}
    for form, _ in forms.most_common():  # the most frequent first
        groups.setdefault(normalise(form), []).append(form)
    several = [group for group in groups.values() if len(group) > 1]
    if several and not clean:
        shown = "; ".join(_told(group, files["train"], label_in) for group in several[:_SHOWN])
        raise UserError(
            f"labels that differ only in blanks, case or Unicode form: {shown}",
            where=paths.shown(files["train"].path),
            allowed="one form of each label",
            remedy="--clean-labels writes each in its most frequent form; or mend the rows",
        )
    to = {form: group[0].strip() for group in groups.values() for form in group}
    for name, file in files.items():
        pairs = [
            written(pair, to[label])
            if (label := label_in(pair)) is not None and to[label] != label
            else pair
            for pair in file.pairs
        ]
        files[name] = replace(file, pairs=pairs)


def _told(group: Iterable[str], file: TaskFile, label_in: Callable[[Pair], str | None]) -> str:
    parts = []
    for form in group:
        lines = [pair.line for pair in file.pairs if label_in(pair) == form]
        where = f", first at line {lines[0]}" if lines else ""
        parts.append(f"{form!r} ({len(lines)} rows{where})")
    return ", ".join(parts)
