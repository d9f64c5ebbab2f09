"""`./run.sh`: the embedded demo, end to end on a CPU.

A sweep of the sample recipe and its baselines, each trained with the real `swift sft`, and what
`eval` and `report` say of all of them: tables, sentences, a picture and the one command to try
next. What it shows is what it measured: if a baseline wins, the table says so.
"""

from __future__ import annotations

import argparse
import shutil
import time
from io import StringIO
from pathlib import Path

from rich.console import Console

from tell_plugins.core import paths
from tell_plugins.evaluation.grids import UNBOUNDED, print_grid, table_console
from tell_plugins.evaluation.system_tables import both_tables
from tell_plugins.experiments import plots, sweep_verb
from tell_plugins.experiments.conclusions import conclude
from tell_plugins.experiments.outcome import Judge, Outcome
from tell_plugins.experiments.results import Study, load_studies, systems_of
from tell_plugins.experiments.sweep import load_sweep

OUT = paths.PROJECT / "output" / "demo"
_AT_ONCE = 2  # trainings; each holds about 2.5 GB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--again", action="store_true", help="train again what is there already")


def run(args: argparse.Namespace) -> int:
    from tell_plugins.bridge.embedded_model import prepare_model

    started = time.monotonic()
    print("TELL on a CPU: SmolLM2-135M learns to judge customers' messages, answering in JSON.")
    print("[1/3] the embedded model", flush=True)
    prepare_model()
    print("[2/3] four trainings, two at a time; each then answers the test rows", flush=True)
    if args.again:
        shutil.rmtree(OUT, ignore_errors=True)
    sweep = load_sweep(paths.RECIPES / "sweeps" / "demo.yaml")
    code = sweep_verb.do(sweep, OUT, "./run.sh", jobs=_AT_ONCE, retry_failed=True)
    if code:
        return code
    print("[3/3] what they do", flush=True)
    show(load_studies(OUT)[0], OUT)
    print(f"Done in {(time.monotonic() - started) / 60:.0f} min (this call).")
    print(f"Picture: {paths.shown(OUT / 'demo.png')}   Answers: {paths.shown(OUT)}/runs/*/eval/")
    print("Next, your own task: ./run.sh new my_task --train my_rows.jsonl --anchor 'What to do.'")
    return 0


def show(study: Study, folder: Path) -> None:
    """Print tables and sentences, keep them in `demo.txt`, and draw `demo.png`."""
    outcome = Outcome(study, Judge(folder))
    systems, text = systems_of(study), StringIO()
    grids = both_tables(systems, f"{systems[0].rows} test rows of the sample task")
    for console in (table_console(), Console(file=text, width=UNBOUNDED)):
        for grid in grids:
            print_grid(grid, console)
        for sentence in conclude(outcome).answers:
            console.print(f"- {sentence}", highlight=False, markup=False)
    paths.write_text(folder / "demo.txt", text.getvalue())
    drawn = {picture.name: picture for picture in plots.pictures(outcome)}
    with paths.atomic_path(folder / "demo.png") as temporary:
        temporary.write_bytes(drawn["methods"].png())
