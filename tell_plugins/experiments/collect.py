"""What of a sweep's folder is kept for good: small, compressed, enough to rebuild the report.

Kept are settings, manifests, what the trainer logged and said, every saved answer and loss, and
the right labels of the rows answered. Not kept are adapters, optimizer states, logs and data.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import find, read_text
from tell_plugins.evaluation import retention
from tell_plugins.experiments.earlier import refuse_other_sweep
from tell_plugins.experiments.results import (
    REFERENCES,
    Entry,
    ReferenceShelf,
    Study,
    load_studies,
)
from tell_plugins.experiments.whole import refuse_damaged

_RUN_FILES = ("run.json", "trained.json", "failed.json", "train/manifest.json")
_EVAL_FILES = ("evaluated.json", "failed.json")
_ANSWER_FILES = ("settings.json", "scores.json")
_PACKED = ("answers.jsonl", *retention.FILES)


def collect(root: Path, target: Path) -> list[Path]:
    """Copy what is kept of `root` into `target` and return the files written.

    Unfinished runs are left out, failed ones keep what is known of their failure. Raises
    UserError when `target` is `root`, or holds another sweep under the name of one of `root`.
    """
    studies = load_studies(root)
    if target.resolve() == root.resolve():
        raise UserError(
            "--collect names the folder itself",
            where=paths.shown(target),
            remedy="name another, such as results/NAME",
        )
    refuse_damaged(studies)
    for study in studies:
        refuse_other_sweep(target, study.index, "name another folder with --collect")
    written: list[Path] = []
    shelf = ReferenceShelf(root)
    done: set[tuple[Path, str]] = set()
    for study in studies:
        written += _copy(root / "sweeps" / f"{study.name}.json", target / "sweeps")
        for entry in study.entries:
            key = (entry.run.folder, entry.evaluation)
            ended = entry.done or entry.run.failure(entry.evaluation)
            if ended and key not in done:
                done.add(key)
                written += _entry(entry, target / "runs" / entry.run.folder.name)
        written += _cards(study, target)
        _know_references(study, shelf)
    for references in shelf.all():
        path = target / REFERENCES / f"{references.card}-{references.split}.json"
        written += _write(path, json.dumps(references.to_dict(), indent=1) + "\n")
    return written


def _entry(entry: Entry, folder: Path) -> list[Path]:
    source = entry.run.folder
    written = [path for name in _RUN_FILES for path in _copy(source / name, folder, name)]
    written += _logging(source / "train" / "logging.jsonl", folder / "train")
    asked = source / "eval" / entry.evaluation
    kept = folder / "eval" / entry.evaluation
    written += [path for name in _EVAL_FILES for path in _copy(asked / name, kept, name)]
    for settings in sorted(asked.glob("*/*/settings.json")):
        here = settings.parent
        there = kept / here.relative_to(asked)
        written += [path for name in _ANSWER_FILES for path in _copy(here / name, there, name)]
        written += [path for name in _PACKED for path in _pack(here / name, there)]
    return written


def _copy(source: Path, folder: Path, name: str | None = None) -> list[Path]:
    """Copy a text file, without the paths of this machine."""
    text = read_text(source)
    if text is None:
        return []
    return _write(folder / (name or source.name), without_paths(text))


def without_paths(text: str) -> str:
    """A text in which the project's own folder is not named."""
    return text.replace(f"{paths.PROJECT}/", "")


def _write(path: Path, text: str) -> list[Path]:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        paths.write_text(path, text)
    return [path]


def _pack(source: Path, folder: Path) -> list[Path]:
    """Keep a file compressed; the same text gives the same bytes."""
    text = read_text(source)
    if text is None:
        return []
    return [_write_packed(folder / f"{source.name}.xz", text)]


def _write_packed(path: Path, text: str) -> Path:
    if find(path.with_suffix("")) is None or read_text(path.with_suffix("")) != text:
        with paths.atomic_path(path) as temporary:
            temporary.write_bytes(lzma.compress(text.encode(), preset=9, check=lzma.CHECK_CRC32))
    return path


def _logging(source: Path, folder: Path) -> list[Path]:
    """The trainer's log without its last line, which repeats all others and names paths."""
    text = read_text(source)
    if text is None:
        return []
    lines = [line for line in text.split("\n") if line and '"log_history"' not in line]
    return [_write_packed(folder / f"{source.name}.xz", "".join(f"{line}\n" for line in lines))]


def _cards(study: Study, target: Path) -> list[Path]:
    """The cards of tasks that are not the project's own: card, anchors and schema, no rows."""
    written = []
    for name in sorted({entry.card for entry in study.entries}):
        folder = load_card(name).folder
        if folder.resolve().is_relative_to(paths.CARDS.resolve()):
            continue
        for path in sorted(folder.iterdir()):
            if path.suffix in (".yaml", ".txt") or path.name == schema_name(name):
                written += _copy(path, target / "cards" / name)
    return written


def schema_name(card_name: str) -> str | None:
    """The file of a card's answer schema."""
    answer = load_card(card_name).answer
    return answer.schema_file if answer else None


def _know_references(study: Study, shelf: ReferenceShelf) -> None:
    for entry in study.done:
        for answers in entry.measured.task:
            shelf.get(entry.card, answers.settings["split"])


def sizes(files: list[Path]) -> dict[str, Any]:
    """How many files, and how many bytes."""
    return {"files": len(files), "bytes": sum(path.stat().st_size for path in set(files))}
