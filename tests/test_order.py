"""The training order: every order holds every entry, and what `even` promises."""

import numpy as np
import numpy.typing as npt
import pytest

from tell_plugins.core.draw import hashes
from tell_plugins.core.order import arrange
from tell_plugins.core.spec import ORDERS
from tell_plugins.core.text import row_ids

Hashes = npt.NDArray[np.uint64]


def _task(rows: int, *, copies: int = 1, seed: int = 42) -> Hashes:
    """Hashes of task entries as the mixture makes them, copies in rounds."""
    ids, zero = row_ids((f"task {n}", "r") for n in range(rows)), np.zeros(rows, np.int64)
    purposes = ["order", *(f"order, copy {copy}" for copy in range(1, copies))]
    rounds = [hashes(ids, zero, seed=seed, source="t", purpose=purpose) for purpose in purposes]
    return np.concatenate(rounds)


def _general(rows: int, seed: int = 42) -> Hashes:
    return np.random.default_rng(seed).integers(0, 2**64, rows, dtype=np.uint64)


SHAPES = [(1, 1, 0), (1, 1, 7), (15, 1, 985), (7, 3, 100), (10, 5, 0), (40, 1, 10), (0, 1, 9)]


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_is_a_permutation(order):
    for rows, copies, general in SHAPES:
        task = _task(rows, copies=copies) if rows else np.zeros(0, np.uint64)
        permutation = arrange(order, task, _general(general), task_rows=rows)
        assert sorted(permutation.tolist()) == list(range(rows * copies + general))
        if order in ("task_first", "task_last"):
            part = permutation[: len(task)] if order == "task_first" else permutation[general:]
            assert sorted(part.tolist()) == list(range(len(task)))


def test_shuffle_mixes_over_the_whole_run():
    places = np.argsort(arrange("shuffle", _task(400), _general(3600), task_rows=400))[:400]
    assert np.bincount(places // 1000, minlength=4).min() > 70  # 100 expected in each quarter
    beside = (places[:-1] + 1 == places[1:]).sum()
    assert beside < 5, "rows do not stay beside their neighbours"


@pytest.mark.parametrize("order", ORDERS)
def test_general_rows_keep_their_order_whatever_the_task(order):
    """Resizing the task data does not shuffle the general rows anew."""
    general = _general(500)
    orders = []
    for rows in (1, 15, 60):
        permutation = arrange(order, _task(rows), general, task_rows=rows)
        orders.append((permutation[permutation >= rows] - rows).tolist())
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize(
    ("rows", "copies", "general"),
    [
        *((5, 1, 25_000), (15, 1, 22_700), (1, 1, 5_000), (3, 20, 997), (15, 8, 1_000)),
        *((400, 1, 401), (5, 4, 25_000), (60, 6, 0)),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_even_puts_one_task_entry_into_every_slot_and_copies_apart(rows, copies, general, seed):
    count, total = rows * copies, rows * copies + general
    task = _task(rows, copies=copies, seed=seed)
    places = np.argsort(arrange("even", task, _general(general), task_rows=rows))[:count]
    width, slots = total / count, np.arange(count)
    ordered = np.sort(places)
    assert (ordered >= np.floor(slots * width)).all()
    assert (ordered < np.ceil((slots + 1) * width)).all()
    apart = np.diff(ordered)
    assert apart.max(initial=0) < width * 4 / 3 + 2
    assert apart.min(initial=total) > width * 2 / 3 - 2
    if width > 100 and count > 2:
        assert np.ptp(apart) > 0.05 * width, "a jitter, not a comb"
    of_a_row = places.reshape(copies, rows)  # copies in rounds
    assert (abs(np.diff(of_a_row, axis=0) - total / copies) < width + 1).all()
    visited = np.argsort(of_a_row, axis=1)
    assert (visited == visited[0]).all(), "every round visits the rows in the same order"
