"""Arrow arrays from plain values, by their buffers: `pyarrow.array` would load pandas for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def strings(texts: Sequence[str]) -> pa.Array:
    """(n,) large strings. Raises UnicodeEncodeError for half a character."""
    parts = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    data = pa.py_buffer(b"".join(parts))
    return pa.LargeStringArray.from_buffers(len(parts), pa.py_buffer(ends), data)


def integers(values: npt.NDArray[np.integer]) -> pa.Array:
    """(n,) 32-bit integers."""
    data = pa.py_buffer(np.ascontiguousarray(values, np.int32))
    return pa.Array.from_buffers(pa.int32(), len(values), [None, data])


def labels(codes: npt.NDArray[np.integer], names: Sequence[str]) -> pa.Array:
    """(n,) strings: for each code, the name at its position."""
    return pa.DictionaryArray.from_arrays(integers(codes), strings(names)).cast(pa.string())
