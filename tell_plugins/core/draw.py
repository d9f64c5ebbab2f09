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


def occurrences(ids: Ids) -> npt.NDArray[np.int64]:
    """For each row, how many equal rows stand before it (0 for a row that is not repeated)."""
    if len(ids) == 0:
        return np.zeros(0, np.int64)
    view = np.ascontiguousarray(ids).view("V16").ravel()
    order = np.argsort(view, kind="stable")
    same = np.concatenate([[False], view[order][1:] == view[order][:-1]])
    counts = np.arange(len(ids)) - np.maximum.accumulate(np.where(same, 0, np.arange(len(ids))))
    result = np.empty(len(ids), np.int64)
    result[order] = counts
    return result


def hashes(
    ids: Ids, nth: npt.NDArray[np.int64], *, seed: int, source: str, purpose: str
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


def ranking(ids: Ids, *, seed: int, source: str) -> npt.NDArray[np.int64]:
    """Positions of the rows in the order in which amounts take them."""
    rank = hashes(ids, occurrences(ids), seed=seed, source=source, purpose="draw")
    return np.argsort(rank, kind="stable")


def take(
    amount: Amount,
    ranked: npt.NDArray[np.int64],
    tokens: npt.NDArray[np.int64] | None,
    *,
    source: str,
) -> npt.NDArray[np.int64]:
    """The first rows of a ranking that make up `amount`, of rows or tokens.

    A token amount takes rows until it is reached, so it is met to within one row. `tokens` are
    the counts of all rows, by position; they are there where the amount asks for them.
    Raises UserError when there is too little data; nothing is ever repeated to fill up.
    """
    if amount.unit == "all":
        return ranked
    if amount.number == 0:
        return ranked[:0]
    if amount.unit == "tok":
        assert tokens is not None
        sums = np.cumsum(tokens[ranked], dtype=np.int64)
        have = int(sums[-1]) if len(sums) else 0
        if have < amount.number:
            raise _too_little(amount, f"{have:,} tokens in {len(ranked):,} rows", source)
        return ranked[: int(np.searchsorted(sums, amount.number)) + 1]
    if amount.number > len(ranked):
        raise _too_little(amount, f"{len(ranked):,} rows", source)
    return ranked[: int(amount.number)]


def _too_little(amount: Amount, have: str, source: str) -> UserError:
    return UserError(
        f"{amount} asked, but there are only {have}",
        where=source,
        allowed="any amount up to what there is, or 'all'",
        remedy="ask for less, or name more general cards with from=a+b "
        "(task rows are repeated only by repeat=N)",
    )


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
