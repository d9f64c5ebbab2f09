"""ms-swift's keys, asked once a test session and laid into each test's own cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from unittest import mock

from tell_plugins.recipe.swift_keys import SwiftKeys, swift_keys


@lru_cache(maxsize=1)
def _asked() -> tuple[Path, SwiftKeys]:
    folder = Path(tempfile.mkdtemp(prefix="tell-keys-"))
    with mock.patch.dict(os.environ, {"TELL_CACHE": str(folder)}):
        return folder, swift_keys()


def keys() -> SwiftKeys:
    """The installed ms-swift's keys."""
    return _asked()[1]


def lay_keys(cache: Path) -> None:
    """Put the answer where `check` looks for it, so that it need not ask again."""
    shutil.copytree(_asked()[0] / "swift_keys", cache / "swift_keys", dirs_exist_ok=True)
