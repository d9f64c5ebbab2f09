"""What a run did to the rest of the model, set against the base model: of one run, or of all seeds
of a method together.

Bleed, the task's words and circles in answers to general questions. Foreign instructions and plain
prose, on which no recipe trains: the mean negative log-likelihood per token, of the response or of
the text itself. The base model's own answers: the mean KL divergence from it per token. Loss on
held-out rows of the source that a run trained on is style fit: it falls as a run takes on that
source's manner, and says little of what else was lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tell_plugins.bridge.protocol import Ask, Engine, decoding
from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.progress import tracked
from tell_plugins.core.sources import open_split
from tell_plugins.core.state_files import (
    Shape,
    cached_json,
    find,
    read_json_lines,
    write_json_lines,
)
from tell_plugins.core.text import row_id
from tell_plugins.evaluation import bleed
from tell_plugins.evaluation.answers import (
    AGAIN,
    ANSWERS,
    Answer,
    Prompt,
    Settings,
    answer_lines,
    differing,
    saved_settings,
)
from tell_plugins.evaluation.bleed import Form, form_of
from tell_plugins.evaluation.differences import Difference, Measure, difference, measure_of
from tell_plugins.evaluation.intervals import Estimate
from tell_plugins.evaluation.judged import Column, Judged

CARD = "retention"
BLEED, KL, STYLE_FIT = "bleed minus base", "KL to base", "style fit"
INSTRUCTIONS, PROSE = "foreign instructions minus base", "prose minus base"
STYLE_CHANGE = "style fit minus base"
LOSSES = "losses.jsonl"
# losses that are set against the base model's, and the file of each
LOSS_FILES = {INSTRUCTIONS: "instructions.jsonl", PROSE: "prose.jsonl", STYLE_CHANGE: LOSSES}
FILES = {**LOSS_FILES, KL: "kl.jsonl", STYLE_FIT: LOSSES}
NAMES = (BLEED, *FILES)
SUM_FILES = tuple(dict.fromkeys(FILES.values()))  # each once
KL_TOKENS = 48  # of the base model's answers that divergence is taken on
_AT_ONCE = 16  # rows that an engine gets at a time
_MEASURE_AGAIN = "remove the file: ./run.sh eval measures again"
_FORMAT = 1  # raised when the base's answers would come out otherwise
# what two losses must share
_OF_LOSSES = (
    *("model", "model_sha256", "model_files_sha256", "engine"),
    *("prompts_sha256", "rows_sha256"),
)

Pair = tuple[str, str]
Sum = tuple[float, float]  # the sum over a row's tokens, and how many they are
Take = Callable[[Sequence[Pair]], list[Sum]]
Elsewhere = dict[str, Estimate | None]  # by name; what was not measured is None or absent


class LossLine(Shape):
    """A line of one of `FILES`: the sum of a row, over at least one token."""

    loss_sum: float = Field(allow_inf_nan=True)  # of a run that diverged it is no number
    tokens: int = Field(gt=0)
    rows: int | None = None


# --- measured -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Foreign:
    """Rows of the project's own that no mixture may hold."""

    questions: list[Prompt]
    instructions: list[Pair]
    prose: list[Pair]  # title, text


def foreign(rows: int | None = None) -> Foreign:
    """The first `rows` of each kind, all for None; the questions' kinds take turns."""
    card = load_card(CARD)
    questions, instructions, prose = (
        open_split(card, split).all_texts()[:rows]
        for split in ("questions", "instructions", "prose")
    )
    asked = [Prompt(f"general-{row}", row, query) for row, (query, _) in enumerate(questions)]
    return Foreign(asked, instructions, prose)


def measure(rows: Sequence[Pair], take: Take, path: Path, *, label: str) -> None:
    """Write what `take` says of the rows, several at a time, to `path`, unless it is there already.

    A line names its row by content: what was taken on another text is taken again. It says how
    many rows there are, so that a cut file is known.
    """
    ids = [row_id(*row).hex() for row in rows]
    if path.is_file() and [line.get("id") for line in _lines(path)] == ids:
        return
    parts = [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
    sums = [found for part in tracked(parts, label, "batches", len(parts)) for found in take(part)]
    lines = [
        {"id": name, "loss_sum": total, "tokens": tokens, "rows": len(rows)}
        for name, (total, tokens) in zip(ids, sums, strict=True)
    ]
    write_json_lines(path, lines)


def measure_all(
    engine: Any,
    general: Sequence[Pair],
    rows: Foreign,
    settings: Settings,
    folder: Path,
    *,
    label: str,
    base: bool,
) -> None:
    """Style fit on the `general` rows, losses on instructions and prose, and divergence from the
    base model, as far as the engine can tell them: one that only answers cannot."""
    asked: list[tuple[str, Sequence[Pair], Take]] = []
    if hasattr(engine, "response_losses"):
        asked.append((LOSSES, general, engine.response_losses))
        asked.append((FILES[INSTRUCTIONS], rows.instructions, engine.response_losses))
    if hasattr(engine, "text_losses"):
        asked.append(
            (FILES[PROSE], rows.prose, lambda part: engine.text_losses([t for _, t in part]))
        )
    if hasattr(engine, "divergences_from_base"):
        said = base_answers(engine, rows.questions, settings)  # kept, for adapters that follow
        if not base:
            own = [(q.text, a) for q, a in zip(rows.questions, said, strict=True) if a.strip()]
            asked.append((FILES[KL], own, engine.divergences_from_base))
    for name, pairs, take in asked:
        measure(pairs, take, folder / name, label=f"{label}, {name.removesuffix('.jsonl')}")


def base_answers(engine: Engine, questions: Sequence[Prompt], settings: Settings) -> list[str]:
    """The base model's greedy answers, made once for a model and kept by content."""
    own = ("model_sha256", "model_files_sha256", "engine", "model", "prompts_sha256", "batch_size")
    known = [getattr(settings, key, "") for key in own]
    name = hashlib.sha256(json.dumps([_FORMAT, KL_TOKENS, *known]).encode()).hexdigest()
    path = paths.cache_dir() / "base_answers" / f"{name[:32]}.json"
    kept: list[str] | None = cached_json(path, list[str])
    if kept is not None:
        return kept
    size, texts = settings.batch_size, [question.text for question in questions]
    batches = [texts[start : start + size] for start in range(0, len(texts), size)]
    said: list[str] = []
    with engine.adapter(None):
        for batch in tracked(batches, "base model's answers", "batches", len(batches)):
            replies = engine.answer(batch, Ask(decoding("greedy"), KL_TOKENS, seed=42))
            said += [reply.text for reply in replies]
    paths.write_text(path, json.dumps(said, ensure_ascii=False))
    return said


# --- read back ------------------------------------------------------------------------------------


def read_sums(folder: Path, name: str = LOSSES, remedy: str = _MEASURE_AGAIN) -> list[Sum]:
    """(sum, tokens) of every row of one of `FILES`; empty when nothing was measured.

    Raises UserError, with `remedy`, for a file that is not whole.
    """
    lines = _lines(folder / name, remedy)
    asked = lines[0].get("rows") if lines else None
    if asked not in (None, len(lines)):
        raise UserError(
            f"{len(lines)} rows, but {asked} were asked: lines are missing, or too many",
            where=paths.shown(find(folder / name) or folder),
            remedy=remedy,
        )
    return [(line["loss_sum"], line["tokens"]) for line in lines]


def _lines(path: Path, remedy: str = _MEASURE_AGAIN) -> list[dict[str, Any]]:
    # of a run that diverged the losses are no numbers
    return read_json_lines(path, LossLine, remedy, foreign=True)


def column(losses: npt.ArrayLike) -> Column:
    """Loss or divergence per token as a measure, a row each."""
    return Column(np.asarray(losses, float), percent=False, is_loss=True)


@dataclass(frozen=True)
class Run:
    """One run's answers to general questions, and the sums in `FILES`."""

    answers: list[Answer]
    sums: dict[str, list[Sum]]


def read(folder: Path, beside: Path | None = None, remedy: str = AGAIN) -> Run:
    """What was measured in a folder; nothing where there is none.

    Its losses are left out unless they are of the same model over the same rows as those in
    `beside`, as far as the settings of both say. Raises UserError, with `remedy`, for files that
    are not readable or not whole.
    """
    answers = answer_lines(folder / ANSWERS, remedy)
    sums = {name: read_sums(folder, name, remedy) for name in SUM_FILES}
    if beside is not None:
        mine, theirs = saved_settings(folder), saved_settings(beside)
        if mine is None or theirs is None or differing(mine, theirs, _OF_LOSSES):
            sums = {name: [] for name in sums}
    return Run(answers, sums)


def read_general(folder: Path, base: Path | None, card: Card) -> General:
    """What was measured in `folder`, set against the base model's folder where there is one."""
    other = None if base is None or base == folder else read(base, folder)
    return General([read(folder)], other, form_of(card))


@dataclass(frozen=True)
class General:
    """What all runs of a system did, each beside the model that it was trained from.

    Attributes:
        form: how the answers of the task are known.
    """

    runs: Sequence[Run] = ()
    base: Run | None = None
    form: Form = field(default_factory=Form)

    @cached_property
    def numbers(self) -> Elsewhere:
        """All measures; without changes where there is no base model to compare with."""
        found: Elsewhere = dict.fromkeys((bleed.BLEED, bleed.WORDS, bleed.CIRCLES))
        asked = self._judged
        if asked.rows:
            found |= {name: column.estimate(asked.rows) for name, column in asked.columns.items()}
        if self.base is not None:
            before = General([self.base], None, self.form)
            for name in (BLEED, *LOSS_FILES):
                if (moved := self.minus(before, name)) is not None:
                    found[name] = moved
        for name in (KL, STYLE_FIT):
            if (one := self.measure(name)) is not None:
                found[name] = one.column.estimate(one.ids)
        found.setdefault(STYLE_FIT, None)
        return found

    @cached_property
    def _judged(self) -> Judged:
        return bleed.judged([answer for run in self.runs for answer in run.answers], self.form)

    def measure(self, name: str) -> Measure | None:
        """One of `NAMES`, row by row, the mean of the runs; None where they do not have it, or of
        other rows.

        Of the divergence a row is a question, to which the base model's answer may be another each
        time: it is made again on another machine, which rounds otherwise.
        """
        if name == BLEED:
            asked = self._judged
            known = asked.rows and bleed.BLEED in asked.columns
            return measure_of(asked.rows, asked.columns[bleed.BLEED]) if known else None
        parts = [run.sums[FILES[name]] for run in self.runs]
        sums = np.asarray(parts, float) if len(set(map(len, parts))) == 1 else np.empty(0)
        if not sums.size or (name != KL and np.ptp(sums[..., 1], axis=0).any()):
            return None
        return measure_of(range(sums.shape[1]), column(sums.mean(axis=0)))

    def minus(self, other: General, name: str) -> Difference | None:
        """The paired difference of a measure to another's; None where there is none."""
        return difference(self.measure(name), other.measure(name))
