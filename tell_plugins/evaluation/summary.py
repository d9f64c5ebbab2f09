"""What `eval` prints: one line a system, the task beside what the run did elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tell_plugins.core.cards import Card
from tell_plugins.evaluation import retention, scoring
from tell_plugins.evaluation.answers import (
    ANSWERS,
    GENERAL,
    differing,
    read_answers,
    saved_settings,
)
from tell_plugins.evaluation.bleed import format_test
from tell_plugins.evaluation.intervals import Estimate, Rate, rate
from tell_plugins.evaluation.scoring import Scores

WIDTH = 112  # columns that a table needs at least
_OF_LOSSES = ("model", "model_sha256", "engine", "prompts_sha256")  # what two losses must share
_LABEL = 16  # of them for a system's name, if it is so long
_CAPTION = (
    "[95 % interval]. Accuracies count an answer of the wrong form as wrong. General loss: per "
    "token on held-out general rows, and its change to the base model. Bleed: general questions, "
    "asked without the anchor, that were answered in the task's format."
)


@dataclass(frozen=True)
class General:
    """What a run did elsewhere.

    Attributes:
        loss: mean loss per token on held-out general rows, None where not measured.
        change: that loss minus the base model's over the same rows, with its paired interval.
        bleed: general questions answered in the task's format.
    """

    loss: retention.Retention | None
    change: tuple[float, float, float] | None
    bleed: Rate | None


@dataclass(frozen=True)
class System:
    """One system: its label, its scores, what it did elsewhere."""

    label: str
    scores: Scores
    general: General


def read_general(folder: Path, base: Path | None, card: Card) -> General:
    """What was measured in `folder`, set against the base model's folder where there is one."""
    losses = retention.read_losses(folder)
    change = None if base is None or base == folder else _change(folder, base)
    bleed = None
    if (folder / ANSWERS).is_file():
        in_format = format_test(card)
        if in_format is not None:
            bleed = rate([in_format(answer["text"]) for answer in read_answers(folder)])
    return General(retention.retention(losses) if losses else None, change, bleed)


def _change(folder: Path, base: Path) -> tuple[float, float, float] | None:
    """The change of loss to the base's; None unless the same model was measured on the same rows.

    Raises UserError for settings that are not readable.
    """
    losses, base_losses = retention.read_losses(folder), retention.read_losses(base)
    if not losses or [tokens for _, tokens in losses] != [tokens for _, tokens in base_losses]:
        return None
    mine, theirs = saved_settings(folder), saved_settings(base)
    if mine is None or theirs is None or differing(mine, theirs, _OF_LOSSES):
        return None
    return retention.difference(losses, base_losses)


def read_system(out: Path, label: str, answers: str, card: Card, base: str = "none") -> System:
    """Scores and general measures of one system below an `eval` folder."""
    return System(
        label,
        scoring.score(out / label / answers),
        read_general(out / label / GENERAL, out / base / GENERAL, card),
    )


def shown(value: Rate | Estimate | None) -> str:
    """A number and, on a line of its own, its 95 % interval; a rate as a share of its rows."""
    if value is None or value.value is None:
        return "-"
    if isinstance(value, Rate):
        low, high = f"{value.low * 100:.0f}", f"{value.high * 100:.0f}"
        return f"{value.value:.0%} of {value.n}\n[{low}, {high}]"
    if value.low is None or value.high is None:
        return f"{value.value:.2f}"
    return f"{value.value:.2f}\n[{value.low:.2f}, {value.high:.2f}]"


def headline_names(systems: Iterable[System]) -> list[str]:
    """The names of all headline scores, each once, in order."""
    return list(dict.fromkeys(name for system in systems for name in system.scores.headline))


def table(systems: Sequence[System], title: str) -> Table:
    """One row a system: its headline scores, loss and change elsewhere, bleed."""
    view = Table(title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    view.caption = _CAPTION
    longest = max(len(system.label) for system in systems)
    view.add_column("system", overflow="fold", min_width=min(longest, _LABEL))
    measures = headline_names(systems)
    for name in measures:
        view.add_column(name, min_width=max(len(word) for word in name.split()))
    view.add_column("general loss", min_width=14)
    view.add_column("bleed", min_width=len("100% of 100"))
    for system in systems:
        general = system.general
        loss = "-" if general.loss is None else f"{general.loss.loss:.2f}"
        if general.change is not None:
            value, low, high = general.change
            loss += f", {value:+.2f}\n[{low:+.2f}, {high:+.2f}]"
        headline = system.scores.headline
        cells = [shown(headline.get(name)) for name in measures]
        view.add_row(system.label, *cells, loss, shown(general.bleed))
    return view


def print_summary(out: Path, labels: Sequence[str], answers: Sequence[str], card: Card) -> None:
    """Print the table of the systems of one `eval` call, and why answers failed."""
    console = Console(soft_wrap=False)
    console.width = max(console.width, WIDTH)
    for name in answers:
        systems = [read_system(out, label, name, card) for label in labels]
        rows = systems[0].scores.rows
        console.print(table(systems, f"{card.name}, {name}: {rows} rows"))
        for system in systems:
            if system.scores.json and system.scores.json["strict"].failures:
                kinds = system.scores.json["strict"].failures
                told = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
                console.print(f"{system.label}: not adherent: {told}", highlight=False)
