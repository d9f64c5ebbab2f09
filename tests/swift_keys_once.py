"""ms-swift's keys; where they do not come along, asked once a machine."""

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
def keys() -> SwiftKeys:
    """The installed ms-swift's keys."""
    with mock.patch.dict(os.environ, {"TELL_CACHE": str(_FOLDER)}):
        return swift_keys()


def lay_keys(cache: Path) -> None:
    """Put the answer of an ms-swift that had to be asked where the next call looks for it."""
    keys()
    if (_FOLDER / "swift_keys").is_dir():
        shutil.copytree(_FOLDER / "swift_keys", cache / "swift_keys", dirs_exist_ok=True)
