"""`./run.sh`: the embedded demo, end to end on a CPU.

A sweep of the sample recipe and its baselines, each trained with the real `swift sft`, and what
`eval` says of all of them: a table, a picture and the one command to try next. What it shows is
what it measured: if a baseline wins, the table says so.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from rich.console import Console

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.evaluation.answers import GENERAL
from tell_plugins.evaluation.grids import UNBOUNDED, print_grid, table_console
from tell_plugins.evaluation.intervals import shown
from tell_plugins.evaluation.summary import System, elsewhere_table, system_of, table
from tell_plugins.experiments.measures import Difference, Judge
from tell_plugins.experiments.results import BASE_METHOD as BASE
from tell_plugins.experiments.results import Entry, ReferenceShelf, Study, load_studies
from tell_plugins.experiments.store import Store
from tell_plugins.experiments.sweep import load_sweep

OUT = paths.PROJECT / "output" / "demo"
RIVAL, OURS = "SFT, equal steps", "TELL, held"  # the two that the table is read for
_SHOWN = {"adherence": "form", "balanced accuracy": "label"}
_AT_ONCE = 2  # trainings; each holds about 2.5 GB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--again", action="store_true", help="train again what is there already")


def run(args: argparse.Namespace) -> int:
    from tell_plugins.bridge.embedded_model import prepare_model
    from tell_plugins.experiments import sweep_verb

    started = time.monotonic()
    print("TELL on a CPU: SmolLM2-135M learns to judge customers' messages, answering in JSON.")
    print("[1/3] the embedded model", flush=True)
    prepare_model()
    print("[2/3] four trainings, two at a time; each then answers the test rows", flush=True)
    if args.again:
        shutil.rmtree(OUT, ignore_errors=True)
    sweep = load_sweep(paths.RECIPES / "sweeps" / "demo.yaml")
    code = sweep_verb.do(sweep, Store(OUT), "./run.sh", jobs=_AT_ONCE, retry_failed=True)
    if code:
        return code
    print("[3/3] what they do", flush=True)
    study = load_studies(OUT)[0]
    _show(_systems(study), _gaps(study), OUT)
    print(f"Done in {(time.monotonic() - started) / 60:.0f} min (this call).")
    print(f"Picture: {paths.shown(OUT / 'demo.png')}   Answers: {paths.shown(OUT)}/runs/*/eval/")
    print("Next, your own task: ./run.sh new my_task --train my_rows.jsonl --anchor 'What to do.'")
    return 0


def _systems(study: Study) -> list[System]:
    """Every line's scores, the base model first."""
    card = load_card(study.entries[0].card)
    base = _answers(study.entries[0]).parent / GENERAL
    return [system_of(entry.method, _answers(entry), base, card) for entry in study.entries]


def _answers(entry: Entry) -> Path:
    return entry.measured.task[0].folder


def _gaps(study: Study) -> dict[str, Difference]:
    """What our line has over its rival, row by row."""
    judge = Judge(ReferenceShelf(OUT))
    ours, rival = ([e for e in study.entries if e.method == name] for name in (OURS, RIVAL))
    found = {what: judge.difference(ours, rival, name) for name, what in _SHOWN.items()}
    return {what: gap for what, gap in found.items() if gap is not None}


def _show(systems: list[System], gaps: Mapping[str, Difference], folder: Path) -> None:
    from tell_plugins.experiments.demo_picture import draw

    tables = [table(systems, f"{systems[0].scores.rows} test rows of the sample task")]
    elsewhere = elsewhere_table(systems)
    if elsewhere is not None:
        tables.append(elsewhere)
    text = StringIO()
    for console in (table_console(), Console(file=text, width=UNBOUNDED)):
        for grid in tables:
            print_grid(grid, console)
        for line in reading(systems, gaps):
            console.print(f"- {line}", highlight=False)
    paths.write_text(folder / "demo.txt", text.getvalue())
    draw(systems, folder / "demo.png")


def reading(systems: list[System], gaps: Mapping[str, Difference]) -> list[str]:
    """What the table says, in sentences made from its numbers."""
    lines = []
    adherence = {s.label: s.scores.headline["adherence"] for s in systems}
    best = max(adherence.values(), key=lambda rate: rate.value or 0)
    winners = [label for label, rate in adherence.items() if rate.value == best.value]
    lines.append(f"Right form most often: {', '.join(winners)} ({best.value:.0%}).")
    content = {s.label: s.scores.headline["balanced accuracy"] for s in systems}
    top = max(content, key=lambda label: content[label].value or 0)
    value = content[top]
    chance = "above" if (value.low or 0) > 0.5 else "not clearly above"
    lines.append(
        f"Right label most often: {top} (balanced accuracy {value.value:.2f}, {chance} chance)."
    )
    lines += [_gap(what, gap) for what, gap in gaps.items()]
    for system in systems:
        share = system.scores.headline["most frequent label"]
        if share.value is not None and share.value > 0.9 and system.label != BASE:
            lines.append(f"{system.label} answers nearly always the same label.")
    for what, key in (("foreign instructions", "instructions"), ("prose", "prose")):
        changes = {s.label: c for s in systems if (c := getattr(s.general, key)) is not None}
        for word, labels in (
            ("Better", [label for label, change in changes.items() if change.high < 0]),
            ("Worse", [label for label, change in changes.items() if change.low > 0]),
        ):
            if labels:
                lines.append(f"{word} on {what} than the base model: {', '.join(labels)}.")
    bled = [
        f"{s.label} {s.general.bleed.k} of {s.general.bleed.n}"
        for s in systems
        if s.general.bleed and s.general.bleed.k
    ]
    if bled:
        lines.append(f"Open general questions as the task's answers open: {', '.join(bled)}.")
    return lines


def _gap(what: str, gap: Difference) -> str:
    """What our line has over its rival on the same rows, and whether it can be told."""
    points = shown(gap.estimate(), 0, factor=100, sign="+").replace(" [", " points [")
    least = 100 * gap.smallest
    apart = gap.certain
    said = (
        ("more often right" if gap.value > 0 else "less often right") if apart else "not told apart"
    )
    return (
        f"{OURS} against {RIVAL}, {what}: {said} ({points}; these rows show "
        f"{least:.0f} points or more)."
    )
