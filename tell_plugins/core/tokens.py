"""Token counts. The paper counts with the Llama-2 tokenizer whatever is trained (Section 1).

Counts are kept under the cache folder by tokenizer and rows: the same rows are tokenised once.
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
from tell_plugins.core.state_files import made_once
from tell_plugins.core.text import MARK

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH = 1000

Texts = Callable[[npt.NDArray[np.int64]], list[tuple[str, str]]]


def tokenizer_file() -> Path | None:
    """The `tokenizer.json` to count with, or None when none is at hand.

    `$TELL_TOKENIZER` (a file, or a folder that holds one) wins; else `tokenizers/llama2/` or
    `llama2_tokenizer/` in a data home.
    """
    named = os.environ.get("TELL_TOKENIZER")
    if named:
        path = paths.user_path(named)
        path = path / "tokenizer.json" if path.is_dir() else path
        if path.is_file():
            return path
        raise UserError(
            f"no tokenizer at '{named}'",
            where="$TELL_TOKENIZER",
            allowed="a tokenizer.json, or a folder that holds one",
            remedy="correct the path, or unset it to use the Llama-2 tokenizer",
        )
    folders = ("tokenizers/llama2", "llama2_tokenizer")
    files = (home / folder / "tokenizer.json" for home in paths.data_homes() for folder in folders)
    return next((path for path in files if path.is_file()), None)


class TokenCounter:
    """Counts tokens of texts, without special tokens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    def count(self, texts: list[str]) -> npt.NDArray[np.int64]:
        """The number of tokens of each text."""
        tokenizer = _load(self.path, self.sha256)
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return np.array([len(encoding) for encoding in encodings], np.int64)

    def special_tokens(self) -> list[str]:
        """The tokens that steer a model, such as those that end a turn."""
        added = _load(self.path, self.sha256).get_added_tokens_decoder().values()
        return [token.content for token in added if token.special]

    def lengths(self, ids: npt.NDArray[np.uint8], texts: Texts) -> npt.NDArray[np.int64]:
        """Token counts of rows, (n, 2): query and response.

        `ids`, (n, 16), tell the rows by content; `texts` gives those at the given positions, and is
        asked only where these rows were never counted.
        """
        rows = hashlib.sha256(ids.tobytes()).hexdigest()[:32]
        path = paths.cache_dir() / "lengths" / f"{self.sha256[:32]}-{rows}.npy"
        made_once(path, lambda target: self._write(target, len(ids), texts))
        counts: npt.NDArray[np.int64] = np.load(path).astype(np.int64)
        return counts

    def _write(self, target: Path, rows: int, texts: Texts) -> None:
        counts = np.zeros((rows, 2), np.uint32)
        with track(rows, "counting tokens", "rows") as bar:
            for batch in np.split(np.arange(rows), range(_BATCH, rows, _BATCH)):
                flat = [text.replace(MARK, "\n") for pair in texts(batch) for text in pair]
                counts[batch] = self.count(flat).reshape(-1, 2)
                bar.update(len(batch))
        with target.open("wb") as file:
            np.save(file, counts)


@lru_cache(maxsize=4)
def _load(path: Path, _sha256: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        found, remedy = f"no tokenizer file: {error}", "name a tokenizer.json"
        raise UserError(found, where=paths.shown(path), remedy=remedy) from None
    tokenizer.no_truncation()  # a saved file may carry both, and both falsify a count
    tokenizer.no_padding()
    return tokenizer
