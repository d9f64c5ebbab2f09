"""Rows of an own task parted into training and test rows: nothing twice, nothing in both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tell_plugins.core import draw
from tell_plugins.core.errors import UserError
from tell_plugins.core.text import comparison_keys, normalise, row_ids
from tell_plugins.preparation.forms import Pair, TaskFile, lines_named

TEST_SHARE, MOST_TEST_ROWS = 0.2, 200
FEWEST_ROWS = 4  # to split a test set off
_SHOWN = 5
Parts = dict[str, list[Pair]]  # the rows that are "train" and "test", in file order


def without_duplicates(file: TaskFile) -> TaskFile:
    """The file with rows that are the same to the letter once, and a note on those left out."""
    first = {(pair.query, pair.response): pair for pair in reversed(file.pairs)}
    kept = [pair for pair in file.pairs if first[pair.query, pair.response] is pair]
    if len(kept) == len(file.pairs):
        return file
    again = [pair.line for pair in file.pairs if first[pair.query, pair.response] is not pair]
    note = f"repeated rows of {file.path.name} left out: {lines_named(again, _SHOWN)}"
    return replace(file, pairs=kept, notes=(*file.notes, note))


def other_answers(file: TaskFile) -> list[str]:
    """A note on rows that ask what an earlier row asks and answer otherwise."""
    keyed = list(zip(_keys(file.pairs), file.pairs, strict=True))
    first = {key: normalise(pair.response) for key, pair in reversed(keyed)}
    others = [pair.line for key, pair in keyed if first[key] != normalise(pair.response)]
    note = f"{file.path.name}: rows that ask what an earlier row asks and answer otherwise: "
    return [note + lines_named(others, _SHOWN)] if others else []


def without_overlap(
    train: TaskFile, held_out: TaskFile, name: str, drop: bool, role: str = "training"
) -> TaskFile:
    """The training rows (those of `role`) that do not ask what a held-out row asks.

    Raises UserError when there are such rows and `drop` does not say to leave them out.
    """
    asked = set(_keys(held_out.pairs))
    keyed = list(zip(_keys(train.pairs), train.pairs, strict=True))
    both = [pair.line for key, pair in keyed if key in asked]
    kept = [pair for key, pair in keyed if key not in asked]
    found = f"{len(both)} of {len(keyed)} {role} rows are {name} rows"
    if both and not (drop and kept):
        raise UserError(
            f"{found}: {lines_named(both, _SHOWN)}",
            where=f"{train.path.name}, {held_out.path.name}",
            remedy=f"remove them from one of the files, or add --drop-overlap to leave them out "
            f"where others stay: {name} rows neither train nor choose settings",
        )
    if both:
        print(f"left out: {found} ({lines_named(both, _SHOWN)})")
    return replace(train, pairs=kept)


def split_off_test(
    file: TaskFile, labels: Sequence[str] | None, seed: int, wanted: int | None = None
) -> Parts:
    """Part the rows of one file; both parts keep the shares of `labels`, one a row.

    Which rows test depends on their content and the seed alone. Rows that ask the same stay
    together. Of few rows more are taken, so that each label tests. Raises UserError for too few
    rows, or fewer than one test row wanted.
    """
    total = len(file.pairs)
    strata = list(labels) if labels is not None else [""] * total
    several = sum(count > 1 for count in Counter(strata).values())
    share = max(1, round(TEST_SHARE * total), min(several, total // 3))
    count = min(MOST_TEST_ROWS, share) if wanted is None else wanted
    test: set[int] = set()
    if total >= FEWEST_ROWS and count <= total - 2:
        for unit in _by_shares(file.pairs, strata, seed):
            if len(test) + len(unit) <= count:
                test.update(unit)
    if not test:
        raise UserError(
            f"of {total} rows {count} cannot be split off to test with",
            where=file.path.name,
            allowed=f"1 row or more, of {FEWEST_ROWS} at least; two train, and rows that ask the "
            "same stay together",
            remedy="give test rows of their own with --test FILE, or more rows",
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
    ids = row_ids((pair.query, pair.response) for pair in pairs)
    return draw.ranking(ids, seed=seed, source=purpose).tolist()


def _keys(pairs: Sequence[Pair]) -> list[int]:
    return comparison_keys(pair.query for pair in pairs).tolist()
