"""What of a sweep's folder is kept for good: small, compressed, enough to rebuild the report.

Kept are settings, manifests, what the trainer logged and said, every saved answer and loss, and
the right labels of the rows answered. Not kept are adapters, optimizer states, logs and data.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.state_files import read_text
from tell_plugins.evaluation import retention
from tell_plugins.evaluation.answers import ANSWERS
from tell_plugins.experiments.earlier import refuse_other_sweep
from tell_plugins.experiments.results import (
    REFERENCES,
    Entry,
    ReferenceShelf,
    load_studies,
    refuse_damaged,
)
from tell_plugins.experiments.store import EVALUATED, FAILED, RUN, TRAINED

_LOG = "train/logging.jsonl"
_RUN_FILES = (RUN, TRAINED, FAILED, "train/manifest.json", _LOG)
_EVAL_FILES = (EVALUATED, FAILED)
_ANSWER_FILES = ("settings.json", "scores.json", ANSWERS, *retention.FILES)


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
        refuse_other_sweep(target, study, "name another folder with --collect")
    shelf, kept = ReferenceShelf(root), dict[Path, Path]()
    for study in studies:
        index = Path("sweeps") / f"{study.name}.json"
        kept[target / index] = root / index
        for entry in study.entries:
            if entry.done or entry.failure:
                kept |= {target / path.relative_to(root): path for path in _files(entry)}
            kept |= {target / "cards" / path: file for path, file in _card_files(entry.card)}
            for answers in entry.task if entry.done else ():
                shelf.get(entry.card, answers.settings.split)
    texts = {path: read_text(source) for path, source in kept.items()}
    for references in shelf.known.values():
        path = target / REFERENCES / f"{references.card}-{references.split}.json"
        texts[path] = json.dumps(references.model_dump(), indent=1) + "\n"
    return [_write(path, text) for path, text in texts.items() if text is not None]


def _files(entry: Entry) -> Iterator[Path]:
    """What may be there of a run and of what was asked of it."""
    yield from (entry.folder / name for name in _RUN_FILES)
    yield from (entry.eval_folder / name for name in _EVAL_FILES)
    for settings in sorted(entry.eval_folder.glob("*/*/settings.json")):
        yield from (settings.parent / name for name in _ANSWER_FILES)


def _card_files(name: str) -> Iterator[tuple[Path, Path]]:
    """Of a task card that is not the project's own: card, anchors and schema, no rows."""
    card = load_card(name)
    if card.folder.resolve().is_relative_to(paths.CARDS.resolve()):
        return
    schema = card.answer.schema_file if card.answer else None
    for path in sorted(card.folder.iterdir()):
        if path.suffix in (".yaml", ".txt") or path.name == schema:
            yield Path(name) / path.name, path


def _write(path: Path, text: str) -> Path:
    """Keep a text without the paths of this machine, lines of JSON compressed; the same text gives
    the same bytes, and what is there already is left as it is."""
    packed = path.suffix == ".jsonl"
    if path.name == Path(_LOG).name:  # the last line repeats all others and names paths
        lines = [line for line in text.split("\n") if line and '"log_history"' not in line]
        text = "".join(f"{line}\n" for line in lines)
    elif not packed:
        text = text.replace(f"{paths.PROJECT}/", "")
    file = path.with_name(f"{path.name}.xz") if packed else path
    if read_text(path) != text:
        content = text.encode()
        if packed:
            content = lzma.compress(content, preset=9, check=lzma.CHECK_CRC32)
        with paths.atomic_path(file) as temporary:
            temporary.write_bytes(content)
    return file
