"""Drawing rows: which rows an amount takes, independent of everything but the seed and the source.

Rows are ranked by a keyed hash of their content and an amount takes the first of the ranking, so
a smaller amount is always part of a larger one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tell_plugins.core.errors import UserError
from tell_plugins.core.spec import Amount

Ids = npt.NDArray[np.uint8]  # (n, 16)
Positions = npt.NDArray[np.int64]


def occurrences(ids: Ids) -> Positions:
    """For each row, how many equal rows stand before it (0 for a row that is not repeated)."""
    count = len(ids)
    view = np.ascontiguousarray(ids).view("V16").ravel() if count else np.zeros(0, "V16")
    order = np.argsort(view, kind="stable")
    places = np.arange(count)
    first = np.ones(count, bool)  # of equal rows, which are neighbours in this order
    first[1:] = view[order][1:] != view[order][:-1]
    result = np.empty(count, np.int64)
    result[order] = places - np.maximum.accumulate(np.where(first, places, 0))
    return result


def hashes(
    ids: Ids, nth: Positions, *, seed: int, source: str, purpose: str
) -> npt.NDArray[np.uint64]:
    """A 64-bit keyed hash of each row; `nth` tells equal rows apart."""
    key = hashlib.blake2b(f"{purpose}|{seed}|{source}".encode(), digest_size=32).digest()
    base = hashlib.blake2b(key=key, digest_size=8)
    raw = ids.tobytes()
    digests = bytearray()
    for position, number in enumerate(nth.tolist()):
        row = base.copy()
        row.update(raw[16 * position : 16 * position + 16])
        if number:
            row.update(number.to_bytes(8, "little"))
        digests += row.digest()
    return np.frombuffer(bytes(digests), "<u8")


def ranking(ids: Ids, *, seed: int, source: str) -> Positions:
    """Positions of the rows in the order in which amounts take them."""
    rank = hashes(ids, occurrences(ids), seed=seed, source=source, purpose="draw")
    return np.argsort(rank, kind="stable")


def take(amount: Amount, ranked: Positions, tokens: Positions | None, *, source: str) -> Positions:
    """The first rows of a ranking that make up `amount`, of rows or tokens.

    A token amount takes rows until it is reached, so it is met to within one row. `tokens` are
    the counts of all rows, by position; they are there where the amount asks for them. Raises
    UserError when there is too little data; nothing is ever repeated to fill up.
    """
    if amount.unit == "all" or amount.number == 0:
        return ranked if amount.unit == "all" else ranked[:0]
    have, count = f"{len(ranked):,} rows", int(amount.number)
    if amount.unit == "tok":
        assert tokens is not None
        sums = np.cumsum(tokens[ranked], dtype=np.int64)
        have = f"{sums[-1] if len(sums) else 0:,} tokens in {have}"
        count = int(np.searchsorted(sums, amount.number)) + 1
    if count > len(ranked):
        raise UserError(
            f"{amount} asked, but there are only {have}",
            where=source,
            allowed="any amount up to what there is, or 'all'",
            remedy="ask for less, or name more general cards with from=a+b "
            "(task rows are repeated only by repeat=N)",
        )
    return ranked[:count]


def deal(
    ranked: Sequence[int], keys: Sequence[int], strata: Sequence[str], count: int
) -> list[int]:
    """The fold (from 0) of each row of `ranked`, in its order.

    Rows are dealt out one by one, stratum by stratum, so that every fold has its share of each
    where its rows suffice. Rows of one key, which ask the same, stay together. `keys` and `strata`
    are looked up by row.
    """
    dealt: dict[int, int] = {}
    for row in sorted(ranked, key=lambda row: strata[row]):  # stable: as ranked in each stratum
        dealt.setdefault(int(keys[row]), len(dealt) % count)
    return [dealt[int(keys[row])] for row in ranked]
