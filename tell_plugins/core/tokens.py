"""Token counts. The paper counts with the Llama-2 tokenizer whatever is trained (Section 1).

Counts are kept by content under the cache folder, one file a tokenizer: a text is tokenised once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.progress import track
from tell_plugins.core.state_files import is_whole, seal
from tell_plugins.core.text import MARK

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tqdm import tqdm

_ENTRY = np.dtype([("key", "<u8"), ("query", "<u4"), ("response", "<u4")])
_BATCH = 1000
_SAVED = 20 * _BATCH  # rows between two saves; an interrupted count goes on from the last one
_PROCESS = os.getpid()  # the process that may have threads


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

    def count(self, texts: list[str]) -> npt.NDArray[np.uint32]:
        """The number of tokens of each text."""
        with _parallel():
            encodings = _load(self.path, self.sha256).encode_batch_fast(
                texts, add_special_tokens=False
            )
        return np.array([len(encoding) for encoding in encodings], np.uint32)

    def special_tokens(self) -> list[str]:
        """The tokens that steer a model, such as those that end a turn."""
        added = _load(self.path, self.sha256).get_added_tokens_decoder().values()
        return [token.content for token in added if token.special]

    def lengths(
        self,
        keys: npt.NDArray[np.uint64],
        texts: Callable[[npt.NDArray[np.int64]], list[tuple[str, str]]],
    ) -> npt.NDArray[np.uint32]:
        """Token counts of rows, (n, 2): query and response.

        `keys` identify the rows by content; `texts` gives the texts of the rows at the given
        positions and is asked only for rows that were never counted.
        """
        store = _LengthStore(self.sha256)
        known, found = store.look_up(keys)
        if known.all():
            return found
        with store.counting():  # a second process waits for the first instead of counting too
            known, found = store.look_up(keys)
            missing = np.flatnonzero(~known)
            with track(len(missing), "counting tokens", "rows") as bar:
                for start in range(0, len(missing), _SAVED):
                    part = missing[start : start + _SAVED]
                    self._count_rows(part, texts, found, bar)
                    store.add(keys[part], found[part])
        return found

    def _count_rows(
        self,
        rows: npt.NDArray[np.int64],
        texts: Callable[[npt.NDArray[np.int64]], list[tuple[str, str]]],
        into: npt.NDArray[np.uint32],
        bar: tqdm,
    ) -> None:
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            flat = [text.replace(MARK, "\n") for pair in texts(batch) for text in pair]
            into[batch] = self.count(flat).reshape(-1, 2)
            bar.update(len(batch))


@contextlib.contextmanager
def _parallel() -> Iterator[None]:
    """Let the tokenizer use all cores; ms-swift switches that off for the whole process.

    It is off again afterwards, because it must not be on in processes that are forked later: a
    fork has no threads of its parent's pool, and would wait for them for ever.
    """
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true" if os.getpid() == _PROCESS else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@lru_cache(maxsize=4)
def _load(path: Path, _sha256: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"no tokenizer file: {error}", where=paths.shown(path), remedy="name a tokenizer.json"
        ) from None
    tokenizer.no_truncation()  # a saved file may carry both, and both falsify a count
    tokenizer.no_padding()
    return tokenizer


class _LengthStore:
    """Sorted (content key, lengths) entries of one tokenizer, in one file."""

    def __init__(self, tokenizer_sha256: str) -> None:
        self._path = paths.cache_dir() / "lengths" / f"{tokenizer_sha256[:32]}.npy"

    def _read(self) -> npt.NDArray[np.void]:
        if not is_whole(self._path):
            return np.zeros(0, _ENTRY)
        entries: npt.NDArray[np.void] = np.load(self._path)
        return entries

    def counting(self) -> FileLock:
        """A lock for whoever counts with this tokenizer."""
        paths.make_folder(self._path.parent)
        return FileLock(f"{self._path}.counting.lock")

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
        new = np.zeros(len(keys), _ENTRY)
        new["key"], new["query"], new["response"] = keys, lengths[:, 0], lengths[:, 1]
        with FileLock(f"{self._path}.lock"):
            merged = np.concatenate([self._read(), new])
            _, first = np.unique(merged["key"], return_index=True)
            with paths.atomic_path(self._path) as temporary:
                with temporary.open("wb") as file:
                    np.save(file, merged[first])
                seal(temporary)
