"""Token counts. The paper counts with the Llama-2 tokenizer whatever is trained (Section 1).

Counts are kept by content under the cache folder, one file a tokenizer: a text is tokenised once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.progress import track
from tell_plugins.core.rows import Texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ENTRY = np.dtype([("key", "<u8"), ("query", "<u4"), ("response", "<u4")])
_BATCH = 1000
_SAVE_EVERY = 50  # batches; an interrupted count goes on from the last save


def tokenizer_file() -> Path | None:
    """The `tokenizer.json` to count with, or None when none is at hand.

    `$TELL_TOKENIZER` (a file, or a folder that holds one) wins; else `tokenizers/llama2/` or
    `llama2_tokenizer/` in a data home.
    """
    named = os.environ.get("TELL_TOKENIZER")
    if named:
        path = paths.user_path(named)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise UserError(
                f"no tokenizer at '{named}'",
                where="$TELL_TOKENIZER",
                allowed="a tokenizer.json, or a folder that holds one",
                remedy="correct the path, or unset it to use the Llama-2 tokenizer",
            )
        return path
    for home in paths.data_homes():
        for folder in ("tokenizers/llama2", "llama2_tokenizer"):
            path = home / folder / "tokenizer.json"
            if path.is_file():
                return path
    return None


class TokenCounter:
    """Counts tokens of texts, without special tokens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def _tokenizer(self) -> Tokenizer:
        return _load(self.path, self.sha256)

    def count(self, texts: list[str]) -> npt.NDArray[np.uint32]:
        """The number of tokens of each text."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return np.fromiter((len(encoding) for encoding in encodings), np.uint32, len(texts))

    def lengths(
        self,
        keys: npt.NDArray[np.uint64],
        texts: Callable[[npt.NDArray[np.int64]], Texts],
    ) -> npt.NDArray[np.uint32]:
        """Token counts of rows, (n, 2): query and response.

        `keys` identify the rows by content; `texts` gives the texts of the rows at the given
        positions and is asked only for rows that were never counted.
        """
        store = _LengthStore(self.sha256)
        known, found = store.look_up(keys)
        missing = np.flatnonzero(~known)
        if len(missing) == 0:
            return found
        unsaved = 0
        with track(len(missing), "counting tokens", "rows") as bar:
            for start in range(0, len(missing), _BATCH):
                batch = missing[start : start + _BATCH]
                found[batch] = self.count(
                    [t for pair in texts(batch).pairs() for t in pair]
                ).reshape(-1, 2)
                bar.update(len(batch))
                done = start + len(batch)
                if done == len(missing) or done - unsaved >= _SAVE_EVERY * _BATCH:
                    rows = missing[unsaved:done]
                    store.add(keys[rows], found[rows])
                    unsaved = done
        return found


@lru_cache(maxsize=4)
def _load(path: Path, _sha256: str) -> Tokenizer:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"no tokenizer file: {error}", where=paths.shown(path), remedy="name a tokenizer.json"
        ) from None


class _LengthStore:
    """Sorted (content key, lengths) entries of one tokenizer, in one file."""

    def __init__(self, tokenizer_sha256: str) -> None:
        self._path = paths.cache_dir() / "lengths" / f"{tokenizer_sha256[:32]}.npy"

    def _read(self) -> npt.NDArray[np.void]:
        try:
            entries: npt.NDArray[np.void] = np.load(self._path)
        except (FileNotFoundError, ValueError, EOFError):
            return np.zeros(0, _ENTRY)
        return entries if entries.dtype == _ENTRY else np.zeros(0, _ENTRY)

    def look_up(
        self, keys: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint32]]:
        entries = self._read()
        found = np.zeros((len(keys), 2), np.uint32)
        if len(entries) == 0:
            return np.zeros(len(keys), bool), found
        places = np.searchsorted(entries["key"], keys).clip(max=len(entries) - 1)
        known = entries["key"][places] == keys
        found[:, 0] = np.where(known, entries["query"][places], 0)
        found[:, 1] = np.where(known, entries["response"][places], 0)
        return known, found

    def add(self, keys: npt.NDArray[np.uint64], lengths: npt.NDArray[np.uint32]) -> None:
        from filelock import FileLock

        new = np.zeros(len(keys), _ENTRY)
        new["key"], new["query"], new["response"] = keys, lengths[:, 0], lengths[:, 1]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._path}.lock"):
            merged = np.concatenate([self._read(), new])
            _, first = np.unique(merged["key"], return_index=True)
            with paths.atomic_path(self._path) as temporary, temporary.open("wb") as file:
                np.save(file, merged[first])
