"""What `eval` prints: one line a system, the task beside what the run did elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tell_plugins.core.cards import Card
from tell_plugins.evaluation import bleed, retention, scoring
from tell_plugins.evaluation.adapters import BASE
from tell_plugins.evaluation.answers import (
    ANSWERS,
    GENERAL,
    differing,
    read_answers,
    saved_settings,
)
from tell_plugins.evaluation.bleed import form_of
from tell_plugins.evaluation.grids import Grid, print_grid, table_console
from tell_plugins.evaluation.intervals import Estimate, Interval, Rate, shown, smallest_shown
from tell_plugins.evaluation.judged import Judged
from tell_plugins.evaluation.scoring import Scores, same_rows_difference

# what two losses must share
_OF_LOSSES = (
    *("model", "model_sha256", "model_files_sha256", "engine"),
    *("prompts_sha256", "rows_sha256"),
)
_CAPTION = "[95 % interval]. Accuracies count an answer of the wrong form as wrong."
_CAPTION_ELSEWHERE = (
    "[95 % interval], paired where it is a change.",
    "Bleed: general questions, asked without the anchor, whose answer opens as the task's answers "
    "do; in points, minus the base model's rate.",
    "Words: answers that hold the task's keys, labels or most common sentence.",
    "Circles: answers to the same questions that repeat one piece over and over.",
    "Foreign instructions and prose: change of loss per token to the base model, on text of no "
    "source that trains.",
    "KL: divergence from the base model per token of its own answers.",
    "Style fit: change of loss on held-out rows of the general data that trains; not retention.",
)


@dataclass(frozen=True)
class General:
    """What a run did elsewhere; None where it was not measured, or there is no base to compare.

    Attributes:
        bleed, words, circles: rates over general questions, see `bleed.judged`.
        instructions, prose, style_change: change of loss per token to the base model, paired.
        kl: mean divergence from the base model per token, on the base's own answers.
        style_fit: loss per token on held-out rows of the general data.
    """

    bleed: Rate | None = None
    bleed_change: Interval | None = None
    words: Rate | None = None
    circles: Rate | None = None
    instructions: Interval | None = None
    prose: Interval | None = None
    kl: Estimate | None = None
    style_fit: Estimate | None = None
    style_change: Interval | None = None


@dataclass(frozen=True)
class System:
    """One system: its label, its scores, what it did elsewhere."""

    label: str
    scores: Scores
    general: General


def read_general(folder: Path, base: Path | None, card: Card) -> General:
    """What was measured in `folder`, set against the base model's folder where there is one."""
    other = None if base == folder else base
    mine, theirs = (_judged(part, card) for part in (folder, other))
    found = {n: column.estimate(mine.rows) for n, column in mine.columns.items() if mine.rows}
    rates = {name: rate for name, rate in found.items() if isinstance(rate, Rate)}
    bled = same_rows_difference(mine, theirs, bleed.BLEED) if theirs.rows else None
    losses = retention.read(folder, retention.LOSSES)
    divergence = retention.read(folder, retention.KL)
    return General(
        bleed=rates.get(bleed.BLEED),
        bleed_change=None if bled is None else Interval(bled.value, bled.low, bled.high),
        words=rates.get(bleed.WORDS),
        circles=rates.get(bleed.CIRCLES),
        instructions=change(folder, other, retention.INSTRUCTIONS),
        prose=change(folder, other, retention.PROSE),
        kl=retention.retention(divergence) if divergence else None,
        style_fit=retention.retention(losses) if losses else None,
        style_change=change(folder, other, retention.LOSSES),
    )


def _judged(folder: Path | None, card: Card) -> Judged:
    """The answers of a folder to general questions; without rows where there are none."""
    has_answers = folder is not None and (folder / ANSWERS).is_file()
    lines = read_answers(folder) if folder is not None and has_answers else []
    readings = [(int(line["row"]), str(line["text"])) for line in lines]
    return bleed.judged(readings, form_of(card))


def change(folder: Path, base: Path | None, name: str) -> Interval | None:
    """The change of loss to the base's; None unless the same model was measured on the same rows.

    Raises UserError for settings that are not readable.
    """
    if base is None:
        return None
    losses, base_losses = retention.read(folder, name), retention.read(base, name)
    if not losses or [tokens for _, tokens in losses] != [tokens for _, tokens in base_losses]:
        return None
    mine, theirs = saved_settings(folder), saved_settings(base)
    if mine is None or theirs is None or differing(mine, theirs, _OF_LOSSES):
        return None
    return retention.difference(losses, base_losses)


def system_of(label: str, answers: Path, base: Path, card: Card) -> System:
    """One system from the folder of its answers to the task, and the base model's to general
    questions."""
    return System(label, scoring.score(answers), read_general(answers.parent / GENERAL, base, card))


def cell(value: Rate | Estimate | None) -> str:
    """A number and, on a line of its own, its 95 % interval; a rate as a share of its rows."""
    if not isinstance(value, Rate) or value.value is None:
        return shown(value, between="\n")
    share, _, ends = shown(value, 0, factor=100, between="\n").partition("\n")
    return f"{share}% of {value.n}\n{ends}"


def headline_names(systems: Iterable[System]) -> list[str]:
    """The names of all headline scores, each once, in order."""
    return list(dict.fromkeys(name for system in systems for name in system.scores.headline))


def table(systems: Sequence[System], title: str) -> Grid:
    """One row a system: its headline scores on the task."""
    names = headline_names(systems)
    rows = [[s.label, *(cell(s.scores.headline.get(name)) for name in names)] for s in systems]
    return Grid(title, ["system", *names], rows, [_CAPTION])


def elsewhere_table(systems: Sequence[System]) -> Grid | None:
    """One row a system: what it did to the rest of the model; None where nothing was measured."""
    cells = {system.label: _elsewhere(system.general) for system in systems}
    first = next(iter(cells.values()), {})
    names = [name for name in first if any(row[name] != "-" for row in cells.values())]
    if not names:
        return None
    rows = [[label, *(row[name] for name in names)] for label, row in cells.items()]
    notes = [*_CAPTION_ELSEWHERE, _power(systems)]
    return Grid("The rest of the model", ["system", *names], rows, notes)


def _elsewhere(general: General) -> dict[str, str]:
    rate = cell(general.bleed)
    if general.bleed_change is not None:
        points = shown(general.bleed_change, 0, factor=100, sign="+", between="\n")
        rate = f"{rate.partition(chr(10))[0]}, {points}"
    style = shown(general.style_fit, interval=False)
    if general.style_change is not None:
        style += f", {_signed(general.style_change)}"
    return {
        "bleed": rate,
        "words": cell(general.words),
        "circles": cell(general.circles),
        "foreign instructions": _signed(general.instructions),
        "prose": _signed(general.prose),
        "KL": shown(general.kl, 3, between="\n"),
        "style fit": style,
    }


def _signed(change: Interval | None) -> str:
    return shown(change, sign="+", between="\n")


def _power(systems: Sequence[System]) -> str:
    """The smallest differences to the base model that the rows of any system would show."""
    found = []
    for name, key, factor, unit in (
        ("bleed", "bleed_change", 100, " points"),
        ("instructions", "instructions", 1, " nats"),
        ("prose", "prose", 1, " nats"),
    ):
        changes = [c for s in systems if (c := getattr(s.general, key)) is not None]
        if changes:
            least = max(smallest_shown(c.low, c.high) for c in changes) * factor
            found.append(f"{name} {least:.{0 if factor > 1 else 2}f}{unit}")
    if not found:
        return "Changes need the base model's answers: --adapter none DIR."
    return f"These rows show differences to the base from about {', '.join(found)} on (80 % power)."


def print_summary(out: Path, labels: Sequence[str], answers: Sequence[str], card: Card) -> None:
    """Print the table of the systems of one `eval` call, and why answers failed."""
    console = table_console()
    for name in answers:
        base = out / BASE / GENERAL
        systems = [system_of(label, out / label / name, base, card) for label in labels]
        rows = systems[0].scores.rows
        print_grid(table(systems, f"{card.name}, {name}: {rows} rows"), console)
        elsewhere = elsewhere_table(systems) if name == answers[-1] else None
        if elsewhere is not None:
            print_grid(elsewhere, console)
        for system in systems:
            if system.scores.metric == "json" and system.scores.first.failures:
                kinds = system.scores.first.failures
                told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
                console.print(f"{system.label}: not adherent: {told}", highlight=False)
