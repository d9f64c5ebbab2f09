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
    spec, counter, lengths = mixture.spec, mixture.counter, mixture.lengths
    answers = None if lengths is None else lengths[:, 1:]
    return {
        "format": 1,
        "spec": str(spec),
        "card": mixture.card.name,
        "anchor": _anchor_facts(mixture),
        "tokenizer": counter and {"name": counter.name, "sha256": counter.sha256},
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
        "trainable_tokens": None if answers is None else int(answers.sum()),
        "task_share": {
            "rows": _share(np.ones(len(mixture)), mixture.is_task),
            "tokens": _share(lengths, mixture.is_task),
            "trainable_tokens": _share(answers, mixture.is_task),
        },
        "sources": [
            {**source_facts(source), "share": _shares(mixture, index)}
            for index, source in enumerate(mixture.sources)
        ],
        "hash": mixture.hash,
    }


def _anchor_facts(mixture: Mixture) -> dict[str, Any] | None:
    task = mixture.task
    if task is None:
        return None
    anchor, turn = task.anchor, {"turn": "first"} if task.has_turns else {}
    facts = {"choice": anchor.name, "sha256": anchor.sha256, "characters": len(anchor.text)}
    return facts | turn


def source_facts(source: Drawn) -> dict[str, Any]:
    """What a source holds, what of it was dropped, and what was used."""
    in_file, copies = source.tokens(slice(None)), source.repeat
    used, trainable = source.tokens(), source.tokens(column=1)
    lost = {reason: source.tokens(mask) or 0 for reason, mask in source.lost.items()}
    counted: dict[str, Any] = dict.fromkeys(
        ("in_file", "dropped", "available", "used", "trainable")
    )
    if in_file is not None and used is not None and trainable is not None:
        counted = {
            "in_file": in_file,
            "dropped": lost,
            "available": in_file - sum(lost.values()),
            "used": used * copies,
            "trainable": trainable * copies,
        }
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
            "copies": copies,
        },
        "tokens": counted,
        "malformed_rows": [{"line": bad.line, "reason": bad.reason} for bad in source.rows.bad],
    }


def held_out_queries(mixture: Mixture) -> int | None:
    """The general rows that are held-out queries, dropped or kept; None where that is not known."""
    return _total([source.overlapping for source in mixture.sources])


def _total(counts: list[int | None]) -> int | None:
    """The sum, or None when one of the counts is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _shares(mixture: Mixture, index: int) -> dict[str, float | None]:
    """A source's share of the entries, and of their tokens."""
    mine = mixture.origin == index
    return {"rows": _share(np.ones(len(mixture)), mine), "tokens": _share(mixture.lengths, mine)}


def _share(weights: npt.NDArray[Any] | None, mask: Mask) -> float | None:
    if weights is None:
        return None
    whole = weights.sum()
    return round(float(weights[mask].sum() / whole), 6) if whole else 0.0
