"""Environments of their own in a second: packages of the running one, linked into a new folder."""

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.conftest import PROJECT


def linked_environment(folder: Path, groups: Iterable[str]) -> Path:
    """The Python of a new environment that holds what these files of requirements/ bring."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for name in _closure(_named(groups)):
        for top in _top_entries(name):
            (site / top.name).symlink_to(top)
    return folder / "bin" / "python"


def _named(groups: Iterable[str]) -> set[str]:
    files = (PROJECT / "requirements" / f"{group}.txt" for group in groups)
    lines = [line.partition("#")[0].strip() for file in files for line in file.open()]
    return {Requirement(line).name for line in lines if line}


def _closure(names: set[str]) -> set[str]:
    """The distributions that these need, themselves included, by their metadata."""
    found: set[str] = set()
    waiting = [_plain(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting.append(_plain(needed.name))
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _top_entries(name: str) -> set[Path]:
    """The files and folders of a distribution at the top of site-packages."""
    distribution = metadata.distribution(name)
    files = distribution.files or []
    tops = {file.parts[0] for file in files} - {"..", "__pycache__"}
    return {Path(str(distribution.locate_file(top))) for top in tops}
