"""Rows of an own task parted into training and test rows: nothing twice, nothing in both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tell_plugins.core import draw
from tell_plugins.core.errors import UserError
from tell_plugins.core.text import comparison_keys, normalise, row_id
from tell_plugins.preparation.forms import Pair, TaskFile

TEST_SHARE, MOST_TEST_ROWS = 0.2, 200
FEWEST_ROWS = 4  # to split a test set off
_SHOWN = 5


Parts = dict[str, list[Pair]]  # the rows that are "train" and "test", in file order


def without_duplicates(file: TaskFile) -> TaskFile:
    """The file with rows that are the same to the letter once, and a note on those left out."""
    first: dict[tuple[str, str], Pair] = {}
    repeated = []
    for pair in file.pairs:
        earlier = first.setdefault((pair.query, pair.response), pair)
        if earlier is not pair:
            repeated.append(f"line {pair.line} (as {earlier.line})")
    if not repeated:
        return file
    note = f"repeated rows of {file.path.name} left out ({len(repeated)}): {_listed(repeated)}"
    return replace(file, pairs=list(first.values()), notes=(*file.notes, note))


def other_answers(file: TaskFile) -> tuple[str, ...]:
    """A note on rows that ask what an earlier row asks, and answer otherwise; none where there are
    none."""
    first: dict[int, Pair] = {}
    others = []
    for pair, key in zip(file.pairs, _keys(file.pairs), strict=True):
        earlier = first.setdefault(key, pair)
        if normalise(earlier.response) != normalise(pair.response):
            others.append(f"line {pair.line} (as {earlier.line})")
    note = f"{file.path.name}: rows that ask what an earlier row asks and answer otherwise"
    return (f"{note} ({len(others)}): {_listed(others)}",) if others else ()


def _listed(places: Sequence[str]) -> str:
    return ", ".join(places[:_SHOWN]) + (" ..." if len(places) > _SHOWN else "")


def without_overlap(
    train: TaskFile, held_out: TaskFile, name: str, drop: bool, role: str = "training"
) -> TaskFile:
    """The training rows (those of `role`) that do not ask what a held-out row asks.

    Raises UserError when there are such rows and `drop` does not say to leave them out.
    """
    places = dict(zip(_keys(held_out.pairs), held_out.pairs, strict=True))
    kept, both = [], []
    for pair, key in zip(train.pairs, _keys(train.pairs), strict=True):
        if key in places:
            both.append(f"line {pair.line} (= line {places[key].line})")
        else:
            kept.append(pair)
    if both and not drop:
        raise UserError(
            f"{len(both)} {role} rows are {name} rows: {_listed(both)}",
            where=f"{train.path.name}, {held_out.path.name}",
            remedy=f"remove them from one of the files, or add --drop-overlap to leave them out: "
            f"{name} rows neither train nor choose settings",
        )
    if not kept:
        raise UserError(
            f"all {role} rows are {name} rows",
            where=train.path.name,
            remedy=f"give other {role} rows",
        )
    if both:
        print(f"left out: {len(both)} {role} rows that are {name} rows ({_listed(both)})")
    return replace(train, pairs=kept)


def split_off_test(
    file: TaskFile, labels: Sequence[str] | None, seed: int, wanted: int | None = None
) -> Parts:
    """Part the rows of one file; both parts keep the shares of `labels`, one a row.

    Which rows test depends on their content and the seed alone. Rows that ask the same stay
    together. Of few rows more are taken, so that each label tests. Raises UserError for too few
    rows, or fewer than one test row wanted.
    """
    remedy = "give test rows of their own with --test FILE"
    if wanted is not None and wanted < 1:
        raise UserError(
            f"{wanted} test rows",
            where="--test-rows",
            allowed="1 or more",
            remedy=f"leave it out for the default, or {remedy}",
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
            remedy=f"{remedy}, or more rows",
        )
    test: set[int] = set()
    for unit in _by_shares(file.pairs, strata, seed):
        if len(test) + len(unit) <= count:
            test.update(unit)
    if not test:
        raise UserError(
            "no row can be split off: rows that ask the same stay together",
            where=file.path.name,
            remedy=remedy,
        )
    return _parted(file.pairs, [row in test for row in range(total)])


def _by_shares(pairs: Sequence[Pair], strata: Sequence[str], seed: int) -> list[list[int]]:
    """Rows, those that ask the same as one unit, in an order whose beginning has the strata's
    shares, and one unit of each where it is long enough; the last of each is not in it."""
    keys = _keys(pairs)
    units: dict[int, list[int]] = {}
    for row in _ranked(pairs, seed, "test split"):
        units.setdefault(keys[row], []).append(row)
    groups: dict[str, list[list[int]]] = {}
    for unit in units.values():
        groups.setdefault(strata[unit[0]], []).append(unit)
    placed = [
        (place > 0, (place + 0.5) / len(group), unit)
        for group in groups.values()
        for place, unit in enumerate(group[:-1])
    ]
    return [unit for _, _, unit in sorted(placed, key=lambda each: each[:2])]


def _parted(pairs: Sequence[Pair], tests: Sequence[bool]) -> Parts:
    parts: Parts = {"train": [], "test": []}
    for pair, test in zip(pairs, tests, strict=True):
        parts["test" if test else "train"].append(pair)
    return parts


def split_into_folds(
    pairs: Sequence[Pair], labels: Sequence[str] | None, seed: int, count: int
) -> list[Parts]:
    """`count` ways to part the rows, such that each row tests once; `labels` are one a row.

    The rows of each label are dealt out one by one, so that all parts have its share where it has
    rows enough. Which row falls where depends on the rows' content and the seed alone. Rows that
    ask the same stay together. Raises UserError for fewer than two folds, or rows too few.
    """
    keys = _keys(pairs)
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
        _parted(pairs, [fold_of[row] == number for row in range(len(pairs))])
        for number in range(count)
    ]


def _ranked(pairs: Sequence[Pair], seed: int, purpose: str) -> list[int]:
    """The rows in an order that depends on their content, the seed and the purpose alone."""
    raw = b"".join(row_id(pair.query, pair.response) for pair in pairs)
    ids = np.frombuffer(raw, np.uint8).reshape(-1, 16)
    return draw.ranking(ids, seed=seed, source=purpose).tolist()


def _keys(pairs: Sequence[Pair]) -> list[int]:
    return [int(key) for key in comparison_keys([pair.query for pair in pairs])]
