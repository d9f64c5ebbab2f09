"""Where a data file came from, written beside it as `<file>.provenance.json`.

The record is written before the file gets its name: a file that lies there has its own record, or
one that names another hash and so vouches for nothing.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tell_plugins import __version__
from tell_plugins.core.files import cached_json, write_json
from tell_plugins.core.rows import file_sha256

ENDING = ".provenance.json"


def provenance_path(file: Path) -> Path:
    return file.with_name(file.name + ENDING)


def read_provenance(file: Path) -> dict[str, Any] | None:
    """What is recorded about `file`, None when nothing readable is."""
    for path in (provenance_path(file), file.with_suffix(ENDING)):
        record: dict[str, Any] | None = cached_json(path, dict[str, Any])
        if record is not None:
            return record
    return None


def write_provenance(
    file: Path, origin: dict[str, Any], content: Path, **more: Any
) -> dict[str, Any]:
    """Record where `file` comes from, which `content` is about to become; returns the record."""
    record = {
        "file": file.name,
        "sha256": file_sha256(content),
        "bytes": content.stat().st_size,
        "from": origin,
        "made_by": f"tell-recipes {__version__}",
        "made_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **more,
    }
    write_json(provenance_path(file), record)
    return record
