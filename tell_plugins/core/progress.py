"""Progress bars for work that may take more than a few seconds; silent when it does not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

_T = TypeVar("_T")
_DELAY = 2.0  # seconds before a bar shows


def track(total: int | None, label: str, unit: str) -> tqdm:
    """A bar to be updated by hand; use it in a `with` statement."""
    return tqdm(total=total, desc=label, unit=f" {unit}", delay=_DELAY, dynamic_ncols=True)


def tracked(items: Iterable[_T], label: str, unit: str, total: int | None = None) -> Iterable[_T]:
    """`items`, with a bar that counts them."""
    return tqdm(items, total=total, desc=label, unit=f" {unit}", delay=_DELAY, dynamic_ncols=True)
