"""`./run.sh`: the embedded demo, end to end on a CPU.

Trains the sample recipe and its baselines with the real `swift sft`, scores the base model and
all of them on the sample's test rows, and ends with a table, a picture and the one command to try
next. What it shows is what it measured: if a baseline wins, the table says so.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rich.console import Console

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import MachineError
from tell_plugins.core.files import cached_json, write_json
from tell_plugins.core.mixture import build_mixture
from tell_plugins.evaluation.grids import UNBOUNDED, print_grid, table_console
from tell_plugins.evaluation.intervals import shown, smallest_shown
from tell_plugins.evaluation.rivals import WORDS
from tell_plugins.evaluation.significance import RESAMPLES, SEED, Difference
from tell_plugins.evaluation.summary import System, elsewhere_table, read_system, table
from tell_plugins.experiments.training import train_quietly
from tell_plugins.recipe.recipes import Recipe, checkpoints, load_recipe

MAIN = "smollm2_sample"
ANSWERS = "test-greedy"
OUT = paths.PROJECT / "output" / "demo"
_STAMP = "demo.json"
_AT_ONCE = 2  # trainings; each holds about 2.5 GB
# in a time that a newcomer waits; the sample's answers have at most 31 tokens
_ANSWERING: dict[str, Any] = {
    "batch_size": 32,
    "max_new_tokens": 40,
    "general_rows": 20,
    "retention_rows": 60,
}


@dataclass(frozen=True)
class Run:
    """One line of the demo: its recipe and what a newcomer is told it is."""

    recipe: str
    name: str
    what: str


BASE = "base model"
COUNTING = "word counting"  # TF-IDF and logistic regression on the task rows: no language model
RUNS = (
    Run(f"{MAIN}_sft", "SFT", "the task rows alone, once (the paper's baseline)"),
    Run(
        f"{MAIN}_sft_steps",
        "SFT, equal steps",
        "the task rows alone, repeated to the steps of the last",
    ),
    Run(MAIN, "TELL", "the task rows, anchored, among general rows that teach (the paper)"),
    Run(f"{MAIN}_hold", "TELL, held", "the same, repeated, among general rows that hold by KL"),
)
RIVAL, OURS = "SFT, equal steps", RUNS[-1].name  # the two that the table is read for
_SHOWN = {"adherence": "form", "balanced_accuracy": "label"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--again", action="store_true", help="train again what is there already")


def run(args: argparse.Namespace) -> int:
    from tell_plugins.bridge.embedded_model import prepare_model

    started = time.monotonic()
    print("TELL on a CPU: SmolLM2-135M learns to judge customers' messages, answering in JSON.")
    print("[1/3] the embedded model", flush=True)
    prepare_model()
    print("[2/3] training", flush=True)
    adapters = _train_all(again=args.again)
    print("[3/3] answers to the test rows", flush=True)
    _answer(adapters)
    systems, gaps = _systems(adapters)
    folder = OUT
    _show(systems, gaps, folder)
    print(f"Done in {(time.monotonic() - started) / 60:.0f} min (this call).")
    print(f"Picture: {paths.shown(folder / 'demo.png')}   Answers: {_eval_folder()}/*/{ANSWERS}/")
    print("Next, your own task: ./run.sh new my_task --train my_rows.jsonl --anchor 'What to do.'")
    return 0


def _recipe(name: str) -> Recipe:
    return load_recipe(paths.RECIPES / f"{name}.yaml")


def _eval_folder() -> str:
    return paths.shown(_recipe(MAIN).output_dir / "eval")


@dataclass(frozen=True)
class Training:
    """A run with its recipe and mixture; `stamp` tells whether an adapter is of just these."""

    run: Run
    recipe: Recipe
    rows: int
    stamp: dict[str, str]

    @property
    def file(self) -> Path:
        return self.recipe.output_dir / _STAMP

    @property
    def adapter(self) -> Path | None:
        """The adapter of just this recipe and mixture, if it is there."""
        found = checkpoints(self.recipe.output_dir)
        same = self.file.is_file() and cached_json(self.file, dict[str, str]) == self.stamp
        return found[-1] if found and same else None


def _prepare(run: Run) -> Training:
    recipe = _recipe(run.recipe)
    mixture = build_mixture(recipe.spec)
    stamp = {
        "recipe": hashlib.sha256(recipe.path.read_bytes()).hexdigest(),
        "mixture": mixture.hash,
    }
    return Training(run, recipe, len(mixture), stamp)


def _train_all(*, again: bool) -> list[Path]:
    """Train what is not there yet; the adapters' folders in the order of RUNS.

    Two at a time, each on half of the cores: short rows keep one training from using more.
    """
    trainings = [_prepare(run) for run in RUNS]
    missing = [training for training in trainings if again or training.adapter is None]
    for training in trainings:
        state = "" if training in missing else " - already trained"
        print(f"  {training.run.name}: {training.run.what} ({training.rows} rows){state}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(1, (cores or 1) // _AT_ONCE)
    lines: SimpleQueue[int] = SimpleQueue()
    for line in range(_AT_ONCE):
        lines.put(line)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        longest_first = sorted(missing, key=lambda training: -training.rows)
        jobs = [pool.submit(_train, training, threads, lines) for training in longest_first]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    found = [training.adapter for training in trainings]
    return [adapter for adapter in found if adapter is not None]


def _train(training: Training, threads: int, lines: SimpleQueue[int]) -> None:
    line = lines.get()
    try:
        training.file.unlink(missing_ok=True)
        train_quietly(training.recipe, label=training.run.name, threads=threads, line=line)
        folder = training.recipe.output_dir
        if not checkpoints(folder):
            raise MachineError(
                f"swift sft left no checkpoint in {paths.shown(folder)}",
                remedy="remove that folder and start the same command again",
            )
        write_json(training.file, training.stamp)
    finally:
        lines.put(line)


def _tested(adapters: Sequence[Path]) -> list[str]:
    """What `eval` is to test: the base model, a rival without training, the trained ones."""
    return ["none", WORDS, *(str(path) for path in adapters)]


def _answer(adapters: Sequence[Path]) -> None:
    from tell_plugins.evaluation import evaluate
    from tell_plugins.evaluation.options import Options

    recipe = str(paths.RECIPES / f"{MAIN}.yaml")
    evaluate.answer(Options(recipe=recipe, adapter=_tested(adapters), **_ANSWERING))


def _systems(adapters: Sequence[Path]) -> tuple[list[System], dict[str, Difference]]:
    """Every line's scores, and what our line has over its rival, row by row."""
    from tell_plugins.evaluation.adapters import find_adapters
    from tell_plugins.evaluation.measures import difference, measures
    from tell_plugins.evaluation.scored import load_scored

    recipe = _recipe(MAIN)
    out = recipe.output_dir / "eval"
    named = find_adapters(_tested(adapters), recipe, [WORDS])
    names = [BASE, COUNTING, *(run.name for run in RUNS)]
    card = load_card(recipe.spec.card)
    labels = dict(zip(names, [adapter.label for adapter in named], strict=True))
    systems = [
        replace(read_system(out, label, ANSWERS, card), label=name)
        for name, label in labels.items()
    ]
    ours, rival = (measures(load_scored(out / labels[name] / ANSWERS)) for name in (OURS, RIVAL))
    gaps = {}
    for measure, what in _SHOWN.items():
        key = ("strict", measure)
        found = difference(ours[key], rival[key], resamples=RESAMPLES, seed=SEED)
        if found is not None:
            gaps[what] = found
    return systems, gaps


def _show(systems: list[System], gaps: Mapping[str, Difference], folder: Path) -> None:
    from tell_plugins.experiments.demo_picture import draw

    folder.mkdir(parents=True, exist_ok=True)
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
    points = shown(gap, 0, factor=100, sign="+").replace(" [", " points [")
    least = 100 * smallest_shown(gap.low, gap.high)
    apart = (gap.low > 0 or gap.high < 0) and gap.p < 0.05
    said = (
        ("more often right" if gap.value > 0 else "less often right") if apart else "not told apart"
    )
    return (
        f"{OURS} against {RIVAL}, {what}: {said} ({points}; these rows show "
        f"{least:.0f} points or more)."
    )
