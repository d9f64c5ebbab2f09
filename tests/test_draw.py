"""Drawing rows: amounts are nested, and a draw hangs on nothing but the seed and the source."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from tell_plugins.core.draw import hashes, occurrences, ranking, take
from tell_plugins.core.spec import ALL, NONE, Amount, parse_amount
from tell_plugins.core.text import row_ids
from tests.conftest import error_of

Ids = npt.NDArray[np.uint8]


def _ids(texts: list[str]) -> Ids:
    return row_ids((text, "r") for text in texts)


def _some(count: int) -> Ids:
    return _ids([f"row {number}" for number in range(count)])


def test_occurrences_of_equal_rows():
    assert occurrences(_ids(["a", "b", "a", "c", "a", "b"])).tolist() == [0, 0, 1, 0, 2, 1]
    assert occurrences(_some(1000)).sum() == 0
    assert occurrences(_ids(["a"] * 5)).tolist() == [0, 1, 2, 3, 4]
    assert occurrences(_ids([])).tolist() == []


GOLDEN = [8, 9, 7, 10, 11, 6, 2, 0, 3, 5, 1, 4]
FIRST = 14172245537887276655


def test_a_ranking_stays_what_it_is_for_good():
    """Golden: a change here changes every published draw."""
    assert ranking(_some(12), seed=42, source="x").tolist() == GOLDEN
    assert hashes(_some(1), np.array([0]), seed=42, source="x", purpose="draw").tolist() == [FIRST]


def test_equal_rows_are_drawn_one_by_one():
    ids = _ids(["a"] * 50 + ["b"] * 50)
    taken = [
        take(Amount("rows", count), ranking(ids, seed=7, source="x"), None, source="x")
        for count in (10, 50, 100)
    ]
    assert [len(set(part.tolist())) for part in taken] == [10, 50, 100]
    assert 5 < (taken[1] < 50).sum() < 45  # not all of one kind


@pytest.mark.parametrize("unit", ["rows", "tok"])
def test_amounts_are_nested(unit):
    rng = np.random.default_rng(5)
    for count in (1, 2, 15, 400, 3000):
        ids = _some(count)
        tokens = rng.integers(1, 900, count)
        ranked = ranking(ids, seed=count, source="x")
        most = count if unit == "rows" else int(tokens.sum())
        sizes = sorted({1, most, *rng.integers(1, most + 1, 60).tolist()})
        taken = [take(Amount(unit, size), ranked, tokens, source="x").tolist() for size in sizes]
        for smaller, larger in pairwise(taken):
            assert larger[: len(smaller)] == smaller
        assert len(taken[-1]) == count


def test_exact_amounts():
    tokens, ranked = np.array([10, 20, 30]), np.array([2, 0, 1])
    for wanted, used in ((0, []), (1, [2]), (30, [2]), (31, [2, 0]), (40, [2, 0]), (60, [2, 0, 1])):
        assert take(Amount("tok", wanted), ranked, tokens, source="x").tolist() == used
    assert len(take(NONE, ranked, tokens, source="x")) == 0
    assert take(ALL, ranked, None, source="x").tolist() == [2, 0, 1]
    assert take(Amount("rows", 3), ranked, None, source="x").tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("text", "have"),
    [
        ("4rows", "only 3 rows"),
        ("61tok", "only 60 tokens in 3 rows"),
        ("1e15rows", "only 3 rows"),
    ],
)
def test_too_little_data_says_how_much_there_is(text, have):
    amount = parse_amount(text, task=False, where="here")
    caught = error_of(take, amount, np.array([2, 0, 1]), np.array([10, 20, 30]), source="data 'x'")
    assert have in str(caught)
    assert str(caught).startswith(f"data 'x': {amount} asked")
    assert "repeat=N" in str(caught.remedy)
