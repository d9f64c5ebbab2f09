"""Rows of an own task parted into training and test rows: nothing twice, nothing in both."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tell_plugins.core import draw
from tell_plugins.core.errors import UserError
from tell_plugins.core.records import parse_json
from tell_plugins.core.text import comparison_keys, row_id
from tell_plugins.preparation.forms import Pair, TaskFile

TEST_SHARE, MOST_TEST_ROWS = 0.2, 200
FEWEST_ROWS = 4  # to split a test set off


class Split(NamedTuple):
    """Training and test rows, in file order."""

    train: list[Pair]
    test: list[Pair]


def without_duplicates(file: TaskFile) -> tuple[TaskFile, list[str]]:
    """The file with rows that are the same to the letter once, and a warning a kind of repetition.

    Rows that ask the same but for case and spacing are told and kept.
    """
    first: dict[tuple[str, str], Pair] = {}
    repeated: list[tuple[Pair, Pair]] = []
    for pair in file.pairs:
        earlier = first.setdefault((pair.query, pair.response), pair)
        if earlier is not pair:
            repeated.append((pair, earlier))
    kept = list(first.values())
    asked: dict[int, Pair] = {}
    alike: list[tuple[Pair, Pair]] = []
    for pair, key in zip(kept, _keys([pair.query for pair in kept]), strict=True):
        earlier = asked.setdefault(key, pair)
        if earlier is not pair:
            alike.append((pair, earlier))
    warnings = []
    if repeated:
        warnings.append(
            f"{len(repeated)} rows of {file.path.name} are there twice and are kept once: "
            + _lines(repeated)
        )
    if alike:
        warnings.append(
            f"{len(alike)} rows of {file.path.name} ask what another row asks, but for case "
            f"and spacing (kept; look at them): {_lines(alike)}"
        )
    return TaskFile(file.path, file.form, kept), warnings


def _lines(pairs: Sequence[tuple[Pair, Pair]]) -> str:
    shown = ", ".join(f"line {later.line} (as {earlier.line})" for later, earlier in pairs[:5])
    return shown + (" ..." if len(pairs) > 5 else "")


def without_overlap(
    train: TaskFile, held_out: TaskFile, name: str, drop: bool, role: str = "training"
) -> TaskFile:
    """The training rows (those of `role`) that do not ask what a held-out row asks.

    Raises UserError when there are such rows and `drop` does not say to leave them out.
    """
    places = dict(zip(_keys([pair.query for pair in held_out.pairs]), held_out.pairs, strict=True))
    keys = _keys([pair.query for pair in train.pairs])
    both = [
        (pair, places[key]) for pair, key in zip(train.pairs, keys, strict=True) if key in places
    ]
    if not both:
        return train
    shown = ", ".join(f"line {mine.line} (= line {other.line})" for mine, other in both[:5])
    if not drop:
        raise UserError(
            f"{len(both)} {role} rows are {name} rows: {shown}{' ...' if len(both) > 5 else ''}",
            where=f"{train.path.name}, {held_out.path.name}",
            remedy=f"remove them from one of the files, or add --drop-overlap to leave them out: "
            f"{name} rows neither train nor choose settings",
        )
    print(f"left out: {len(both)} {role} rows that are {name} rows ({shown})")
    kept = [pair for pair, key in zip(train.pairs, keys, strict=True) if key not in places]
    if not kept:
        raise UserError(
            f"all {role} rows are {name} rows",
            where=train.path.name,
            remedy=f"give other {role} rows",
        )
    return TaskFile(train.path, train.form, kept)


def split_off_test(
    file: TaskFile, labels: Sequence[str] | None, seed: int, wanted: int | None = None
) -> Split:
    """Part the rows of one file; both parts keep the shares of `labels`, one a row.

    Which rows test depends on their content and the seed alone. Rows that ask the same stay
    together. Of few rows more are taken, so that each label tests. Raises UserError for too few
    rows, or fewer than one test row wanted.
    """
    if wanted is not None and wanted < 1:
        raise UserError(
            f"{wanted} test rows",
            where="--test-rows",
            allowed="1 or more",
            remedy="leave it out for the default, or give test rows of their own with --test FILE",
        )
    total = len(file.pairs)
    strata = list(labels) if labels is not None else [""] * total
    several = sum(count > 1 for count in Counter(strata).values())
    share = max(1, round(TEST_SHARE * total), min(several, total // 3))
    count = wanted or min(MOST_TEST_ROWS, share)
    if total < FEWEST_ROWS or count > total - 2:
        raise UserError(
            f"{total} rows are too few to split {count} test rows off",
            where=file.path.name,
            remedy="give test rows of their own with --test FILE, or more rows",
        )
    keys = _keys([pair.query for pair in file.pairs])
    together: dict[int, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        together[key].append(row)
    quota = _quotas(Counter(strata), count)
    test: set[int] = set()
    for row in _ranked(file.pairs, seed, "test split"):
        group = together[keys[row]]
        if row not in test and quota[strata[row]] >= len(group) and group[0] == row:
            test.update(group)
            quota[strata[row]] -= len(group)
    if not test:
        raise UserError(
            "no row can be split off: rows that ask the same stay together",
            where=file.path.name,
            remedy="give test rows of their own with --test FILE",
        )
    return Split(
        [pair for row, pair in enumerate(file.pairs) if row not in test],
        [pair for row, pair in enumerate(file.pairs) if row in test],
    )


def split_into_folds(
    pairs: Sequence[Pair], labels: Sequence[str] | None, seed: int, count: int
) -> list[Split]:
    """`count` ways to part the rows, such that each row tests once; `labels` are one a row.

    The rows of each label are dealt out one by one, so that all parts have its share where it has
    rows enough. Which row falls where depends on the rows' content and the seed alone. Rows that
    ask the same stay together. Raises UserError for fewer than two folds, or rows too few.
    """
    keys = _keys([pair.query for pair in pairs])
    asked = len(set(keys))
    if not 2 <= count <= asked or len(pairs) < FEWEST_ROWS:
        raise UserError(
            f"{count} folds of {len(pairs)} rows that ask {asked} things",
            where="--folds",
            allowed=f"2 to {asked}, of {FEWEST_ROWS} rows or more",
            remedy="name fewer folds, or give more rows",
        )
    strata = labels if labels is not None else [""] * len(pairs)
    ranked = _ranked(pairs, seed, "folds")
    fold_of = dict(zip(ranked, draw.deal(ranked, keys, strata, count), strict=True))
    return [
        Split(
            [pair for row, pair in enumerate(pairs) if fold_of[row] != number],
            [pair for row, pair in enumerate(pairs) if fold_of[row] == number],
        )
        for number in range(count)
    ]


def _ranked(pairs: Sequence[Pair], seed: int, purpose: str) -> list[int]:
    """The rows in an order that hangs on their content, the seed and the purpose alone."""
    raw = b"".join(row_id(pair.query, pair.response) for pair in pairs)
    ids = np.frombuffer(raw, np.uint8).reshape(-1, 16)
    return draw.ranking(ids, seed=seed, source=purpose).tolist()


def labels_of(pairs: Sequence[Pair], metric: str, label: str | None) -> list[str] | None:
    """The label of each row, None where the answers have none.

    It is the JSON property `label`, or the whole answer where answers are labels.
    """
    if label is not None:
        return [_label(pair, label) for pair in pairs]
    return [pair.response.strip() for pair in pairs] if metric == "label" else None


def _quotas(sizes: Counter[str], count: int) -> dict[str, int]:
    """`count` test rows over the strata by size (largest remainder); each keeps a training row.

    Each stratum of two rows or more tests, where `count` suffices.
    """
    total = sum(sizes.values())
    exact = {name: count * size / total for name, size in sizes.items()}
    least = int(sum(size > 1 for size in sizes.values()) <= count)
    quota = {name: min(max(int(exact[name]), least), size - 1) for name, size in sizes.items()}
    while sum(quota.values()) > count:
        quota[max(quota, key=lambda name: (quota[name] - exact[name], quota[name], name))] -= 1
    by_rest = sorted(sizes, key=lambda name: (quota[name] - exact[name], name))
    while sum(quota.values()) < count:
        open_strata = [name for name in by_rest if quota[name] < sizes[name] - 1]
        if not open_strata:
            break
        for name in open_strata[: count - sum(quota.values())]:
            quota[name] += 1
    return quota


def _label(pair: Pair, label: str) -> str:
    try:
        value: Any = parse_json(pair.response)
    except ValueError:
        return pair.response.strip()
    return str(value.get(label)) if isinstance(value, dict) else str(value)


def _keys(texts: Sequence[str]) -> list[int]:
    return [int(key) for key in comparison_keys(texts)]
