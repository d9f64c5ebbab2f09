"""Progress bars for work that may take more than a few seconds; silent when it does not."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

_T = TypeVar("_T")
_DELAY = 2.0  # seconds before a bar shows
_LOG_EVERY = 10.0  # seconds between lines where the output is no terminal


def track(total: int | None, label: str, unit: str) -> tqdm:
    """A bar to be updated by hand; use it in a `with` statement."""
    return tqdm(total=total, **_style(label, unit))


def tracked(items: Iterable[_T], label: str, unit: str, total: int | None = None) -> Iterable[_T]:
    """`items`, with a bar that counts them."""
    return tqdm(items, total=total, **_style(label, unit))


def _style(label: str, unit: str) -> dict[str, Any]:
    every = 0.1 if sys.stderr.isatty() else _LOG_EVERY
    return {
        "desc": label,
        "unit": f" {unit}",
        "delay": _DELAY,
        "mininterval": every,
        "maxinterval": max(10.0, every),
        "dynamic_ncols": True,
    }
