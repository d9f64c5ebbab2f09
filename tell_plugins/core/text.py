"""Text as it is compared: two rows that differ only in case, spacing or punctuation are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tell_plugins.core.arrow import strings


def normalise(texts: Sequence[str] | pa.Array) -> pa.Array:
    """NFKD, lower case, every run of other than letters and digits one space, trimmed."""
    array = texts if isinstance(texts, pa.Array) else strings(texts)
    # not NFKC: Arrow 21 gives the decomposed form for it too, other releases may not
    array = pc.utf8_lower(pc.utf8_normalize(array, form="NFKD"))
    array = pc.replace_substring_regex(array, pattern=r"[^\p{L}\p{M}\p{N}]+", replacement=" ")
    return pc.utf8_trim_whitespace(array)


def comparison_keys(texts: Sequence[str] | pa.Array) -> npt.NDArray[np.uint64]:
    """One 64-bit key a text, equal for texts that are equal when normalised.

    A text without any letter or digit is compared as it stands.
    """
    raw = texts.to_pylist() if isinstance(texts, pa.Array) else list(texts)
    normalised = normalise(texts).to_pylist()
    return keys64(plain or text for plain, text in zip(normalised, raw, strict=True))


def keys64(texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    """The first 64 bits of BLAKE2b of each text (UTF-8)."""
    blake2b = hashlib.blake2b
    digests = b"".join(
        blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts
    )
    return np.frombuffer(digests, dtype="<u8")


def row_id(query: str, response: str) -> bytes:
    """The content hash of a row: 16 bytes of BLAKE2b over both texts, the boundary included."""
    first = query.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(len(first).to_bytes(8, "little"), digest_size=16)
    digest.update(first)
    digest.update(response.encode("utf-8", "surrogatepass"))
    return digest.digest()
