"""ms-swift's keys, asked once a machine and laid into each test's own cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from unittest import mock

from tell_plugins.recipe.swift_keys import SwiftKeys, swift_keys

# the answer's file is named by all that it depends on, so later sessions may use it
_FOLDER = Path(tempfile.gettempdir()) / f"tell-test-keys-{os.getuid()}"


@lru_cache(maxsize=1)
def _asked() -> SwiftKeys:
    with mock.patch.dict(os.environ, {"TELL_CACHE": str(_FOLDER)}):
        return swift_keys()


def keys() -> SwiftKeys:
    """The installed ms-swift's keys."""
    return _asked()


def lay_keys(cache: Path) -> None:
    """Put the answer where `check` looks for it, so that it need not ask again."""
    _asked()
    lay_known_keys(cache)


def lay_known_keys(cache: Path) -> None:
    """The same for an answer that is there already; a test that needs none asks nothing."""
    if (_FOLDER / "swift_keys").is_dir():
        shutil.copytree(_FOLDER / "swift_keys", cache / "swift_keys", dirs_exist_ok=True)
