"""The manifest of a mixture: exactly what came out, and no path and no time of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tell_plugins.core import paths
from tell_plugins.core.mixture import Drawn, Mask, Mixture
from tell_plugins.core.state_files import Shape, write_json

MANIFEST, ANCHOR = "manifest.json", "anchor.txt"


class _AnchorFacts(Shape):
    choice: str
    sha256: str
    turn: Literal["first"] | None = None  # of a conversation; None: rows of one turn


class _SourceFacts(Shape):
    card: str
    role: str


class Manifest(Shape):
    """The keys of a `manifest.json` that others count on; earlier releases wrote no sources."""

    spec: str
    card: str | None = None
    hash: str | None = None
    anchor: _AnchorFacts | None = None
    sources: list[_SourceFacts] | None = None


def write_facts(mixture: Mixture, folder: Path, weighting: str) -> None:
    """Write anchor and manifest; the manifest vouches for both: it goes first, comes last."""
    (folder / MANIFEST).unlink(missing_ok=True)
    if mixture.task is not None:
        paths.write_text(folder / ANCHOR, mixture.task.anchor.text)
    else:
        (folder / ANCHOR).unlink(missing_ok=True)  # of an earlier mixture
    write_json(folder / MANIFEST, manifest_of(mixture, weighting))


def manifest_of(mixture: Mixture, weighting: str | None = None) -> dict[str, Any]:
    """Everything that says what a mixture is.

    `weighting` is what weighs the same in a step: `row` or `token` (`spec.weighting`); None where
    no recipe says it.
    """
    spec, task, counter, lengths = mixture.spec, mixture.task, mixture.counter, mixture.lengths
    anchor = tokenizer = trainable = None
    if task is not None:
        text = task.anchor.text
        anchor = {
            "choice": task.anchor.name,
            "sha256": task.anchor.sha256,
            "characters": len(text),
            **({"turn": "first"} if task.has_turns else {}),
        }
    if counter is not None:
        tokenizer = {"name": counter.name, "sha256": counter.sha256}
    if lengths is not None:
        trainable = lengths[:, 1:]
    return {
        "format": 1,
        "spec": str(spec),
        "card": mixture.card.name,
        "anchor": anchor,
        "tokenizer": tokenizer,
        "order": spec.order,
        "seed": spec.seed,
        "repeat": spec.repeat,
        "kl": spec.kl,
        "weighting": weighting,
        "overlap": {
            "rule": spec.overlap,
            "checked": mixture.overlap_checked,
            "general_rows_that_are_held_out_queries": held_out_queries(mixture),
            "of_these_used": _total([source.overlap_used for source in mixture.sources]),
        },
        "rows": len(mixture),
        "tokens": None if lengths is None else int(lengths.sum()),
        "trainable_tokens": None if trainable is None else int(trainable.sum()),
        "task_share": {
            "rows": _share(int(mixture.is_task.sum()), len(mixture)),
            "tokens": _share_of(lengths, mixture.is_task),
            "trainable_tokens": _share_of(trainable, mixture.is_task),
        },
        "sources": [
            {**source_facts(source), "share": _share_of_source(mixture, index)}
            for index, source in enumerate(mixture.sources)
        ],
        "hash": mixture.hash,
    }


def source_facts(source: Drawn) -> dict[str, Any]:
    """What a source holds, what of it was dropped, and what was used."""
    in_file = source.tokens(slice(None))
    lost = {reason: source.tokens(mask) or 0 for reason, mask in source.lost.items()}
    return {
        "card": source.card.name,
        "role": source.role,
        "split": source.split,
        "licence": source.card.licence,
        "file": "+".join(file.name for file in source.rows.files),
        "file_sha256": source.rows.sha256,
        "rows": {
            "in_file": len(source.rows) + source.rows.bad_count,
            "dropped": source.dropped,
            "duplicates_kept": source.duplicates,
            "held_out_queries": source.overlapping,
            "held_out_queries_used": source.overlap_used,
            "used": len(source.used),
            "copies": source.repeat,
        },
        "tokens": {
            "in_file": in_file,
            "dropped": None if in_file is None else lost,
            "available": None if in_file is None else in_file - sum(lost.values()),
            "used": _times(source.tokens(), source.repeat),
            "trainable": _times(source.tokens(column=1), source.repeat),
        },
        "malformed_rows": [{"line": bad.line, "reason": bad.reason} for bad in source.rows.bad],
    }


def held_out_queries(mixture: Mixture) -> int | None:
    """The general rows that are held-out queries, dropped or kept; None where that is not known."""
    return _total([source.overlapping for source in mixture.sources])


def _times(count: int | None, repeat: int) -> int | None:
    return None if count is None else count * repeat


def _total(counts: list[int | None]) -> int | None:
    """The sum, or None when one of the counts is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _share_of_source(mixture: Mixture, index: int) -> dict[str, float | None]:
    """A source's share of the entries, and of their tokens."""
    mine = mixture.origin[mixture.order] == index
    return {
        "rows": _share(int(mine.sum()), len(mixture)),
        "tokens": _share_of(mixture.lengths, mine),
    }


def _share_of(lengths: npt.NDArray[np.int64] | None, mask: Mask) -> float | None:
    return None if lengths is None else _share(int(lengths[mask].sum()), int(lengths.sum()))


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
