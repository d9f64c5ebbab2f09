"""What `eval` prints: one line a system, the task beside what the run did elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from tell_plugins.core.cards import Card
from tell_plugins.evaluation import bleed, elsewhere
from tell_plugins.evaluation.adapters import BASE
from tell_plugins.evaluation.answers import GENERAL, load_scored
from tell_plugins.evaluation.bleed import form_of
from tell_plugins.evaluation.elsewhere import Elsewhere
from tell_plugins.evaluation.grids import Grid, print_grid, table_console
from tell_plugins.evaluation.intervals import Estimate, Rate, shown, smallest_shown
from tell_plugins.evaluation.scoring import System

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


def system_of(name: str, answers: Path, base: Path) -> System:
    """One system from the folder of its answers to the task, and the base model's to general
    questions."""
    scored = load_scored(answers)
    return System(name, scored, read_general(answers.parent / GENERAL, base, scored.card))


def read_general(folder: Path, base: Path | None, card: Card) -> Elsewhere:
    """What was measured in `folder`, set against the base model's folder where there is one."""
    other = None if base is None or base == folder else elsewhere.read(base, folder)
    return elsewhere.elsewhere([elsewhere.read(folder)], other, form_of(card))


def cell(value: Rate | Estimate | None) -> str:
    """A number and, on a line of its own, its 95 % interval; a rate as a share of its rows."""
    if not isinstance(value, Rate) or value.value is None:
        return shown(value, between="\n")
    share, _, ends = shown(value, 0, factor=100, between="\n").partition("\n")
    return f"{share}% of {value.n}\n{ends}"


def table(systems: Sequence[System], title: str) -> Grid:
    """One row a system: its headline scores on the task."""
    found = [(system.name, system.headline) for system in systems]
    names = list(dict.fromkeys(name for _, numbers in found for name in numbers))
    rows = [[name, *(cell(numbers.get(n)) for n in names)] for name, numbers in found]
    return Grid(title, ["system", *names], rows, [_CAPTION])


def elsewhere_table(systems: Sequence[System]) -> Grid | None:
    """One row a system: what it did to the rest of the model; None where nothing was measured."""
    found = [(system.name, _elsewhere(system.general)) for system in systems]
    names = [n for n in (found[0][1] if found else ()) if any(row[n] != "-" for _, row in found)]
    if not names:
        return None
    rows = [[label, *(row[name] for name in names)] for label, row in found]
    notes = [*_CAPTION_ELSEWHERE, _power(systems)]
    return Grid("The rest of the model", ["system", *names], rows, notes)


def _elsewhere(general: Elsewhere) -> dict[str, str]:
    rate = cell(general[bleed.BLEED])
    if elsewhere.BLEED in general:
        points = shown(general[elsewhere.BLEED], 0, factor=100, sign="+", between="\n")
        rate = f"{rate.partition(chr(10))[0]}, {points}"
    style = shown(general[elsewhere.STYLE_FIT], interval=False)
    if elsewhere.STYLE_CHANGE in general:
        style += f", {_signed(general[elsewhere.STYLE_CHANGE])}"
    return {
        "bleed": rate,
        "words": cell(general[bleed.WORDS]),
        "circles": cell(general[bleed.CIRCLES]),
        "foreign instructions": _signed(general.get(elsewhere.INSTRUCTIONS)),
        "prose": _signed(general.get(elsewhere.PROSE)),
        "KL": shown(general.get(elsewhere.KL), 3, between="\n"),
        "style fit": style,
    }


def _signed(change: Rate | Estimate | None) -> str:
    return shown(change, sign="+", between="\n")


def _power(systems: Sequence[System]) -> str:
    """The smallest differences to the base model that the rows of any system would show."""
    found = []
    for name, key, factor, unit in (
        ("bleed", elsewhere.BLEED, 100, " points"),
        ("instructions", elsewhere.INSTRUCTIONS, 1, " nats"),
        ("prose", elsewhere.PROSE, 1, " nats"),
    ):
        changes = [change for s in systems if (change := s.general.get(key)) is not None]
        seen = [smallest_shown(c.low or 0, c.high or 0) for c in changes]
        measured = [least for least in seen if math.isfinite(least)]  # not of a run that diverged
        if measured:
            least = max(measured) * factor
            found.append(f"{name} {least:.{0 if factor > 1 else 2}f}{unit}")
    if not found:
        return "Changes need the base model's answers: --adapter none DIR."
    return f"These rows show differences to the base from about {', '.join(found)} on (80 % power)."


def print_summary(out: Path, labels: Sequence[str], answers: Sequence[str], card: Card) -> None:
    """Print the table of the systems of one `eval` call, and why answers failed."""
    console = table_console()
    for name in answers:
        base = out / BASE / GENERAL
        systems = [system_of(label, out / label / name, base) for label in labels]
        rows = systems[0].rows
        print_grid(table(systems, f"{card.name}, {name}: {rows} rows"), console)
        elsewhere = elsewhere_table(systems) if name == answers[-1] else None
        if elsewhere is not None:
            print_grid(elsewhere, console)
        for system in systems:
            kinds = system.first.failures if card.metric == "json" else {}
            if told := ", ".join(f"{count} {kind}" for kind, count in kinds.items()):
                console.print(f"{system.name}: not adherent: {told}", highlight=False)
