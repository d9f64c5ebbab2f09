"""ms-swift 4.6 beside the pinned one: a folder that goes first on the path of a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
from filelock import FileLock

VERSION = "4.6.0"
DATASETS = "4.8.4"  # what that release needs; the pinned 3.6 lacks a column type it uses


@lru_cache(maxsize=1)
def _made() -> Path | str:
    """The folder, or why there is none. It is kept: the wheel is fetched once."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = (
        Path(base).expanduser()
        / "tell-recipes"
        / "overlays"
        / f"ms-swift-{VERSION}-datasets-{DATASETS}"
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "complete").is_file():
            return folder
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--upgrade", "--quiet"]
        command += ["--disable-pip-version-check", "--target", str(folder)]
        done = subprocess.run(
            [*command, f"ms-swift=={VERSION}", f"datasets=={DATASETS}"],
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode != 0:
            return done.stderr.strip()[-300:] or "pip failed"
        (folder / "complete").touch()
    return folder


def newer_swift() -> Path:
    """The folder that holds ms-swift 4.6; the test is skipped where it cannot be fetched."""
    made = _made()
    if isinstance(made, str):
        pytest.skip(f"ms-swift {VERSION} cannot be fetched from the package index: {made}")
    return made
