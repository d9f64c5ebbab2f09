"""Whole outputs, held against the files of tests/golden.

To take a change over on purpose: TELL_GOLDEN=1 pytest, and look at what git says has changed.
"""

import os
import re
from pathlib import Path

from tests.conftest import PROJECT
from tests.swift_keys_once import keys

FOLDER = PROJECT / "tests" / "golden"


def assert_golden(name: str, text: str, folder: Path) -> None:
    """`folder` is the test's own, whose name is another each time, as is ms-swift's version."""
    for place, word in ((folder, "TMP"), (PROJECT, "PROJECT")):
        text = text.replace(str(place), word)
    text = re.sub(r"\bms-swift " + re.escape(keys().version), "ms-swift VERSION", text)
    assert text == golden(name, text)


def golden(name: str, now: str) -> str:
    """What a file holds; `now`, which is written there, when it is to be taken over."""
    file = FOLDER / name
    if os.environ.get("TELL_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(now, encoding="utf-8")
    return file.read_text(encoding="utf-8")
