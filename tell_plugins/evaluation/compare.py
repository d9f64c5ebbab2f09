"""`./run.sh compare A B...`: saved answers side by side, under every scorer.

Each system has its scores with intervals, and its differences to a baseline, paired over the test
rows that both answered. Answers to different tests are never put into one table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.cards import fold_of, load_card
from tell_plugins.core.errors import UserError, at_least
from tell_plugins.core.progress import tracked
from tell_plugins.core.sources import open_task
from tell_plugins.core.state_files import find, find_below, write_json
from tell_plugins.evaluation import system_tables
from tell_plugins.evaluation.answers import ANSWERS, Saved, read_saved, read_settings
from tell_plugins.evaluation.differences import Difference, difference
from tell_plugins.evaluation.grids import print_grid, table_console, to_csv
from tell_plugins.evaluation.intervals import RESAMPLES, SEED, USUAL, Draws
from tell_plugins.evaluation.judged import Column, Scored
from tell_plugins.evaluation.options import LEARNED_OPTIONS, add_some
from tell_plugins.evaluation.paper_numbers import paper_number
from tell_plugins.evaluation.scorers.learned import Wanted, score_learned, wanted
from tell_plugins.evaluation.scoring import System, joined, scored
from tell_plugins.evaluation.system_names import method_of, system_names, trained_spec

_SAME_IN_ALL_FOLDS = ("anchor", "decoding", "seed", "shots", "scale", "model", "engine")
_DEFAULT_OUT = "output/compare"
_OF_DIFFERENCE = ("value", "low", "high", "p", "n", "resamples", "seed")
_OF_FOLDS = (
    "Each row was answered by a training that did not see it, one a fold. The intervals are over "
    "the rows; that the trainings differ is not in them."
)


class Compared(NamedTuple):
    """A system's difference to the baseline in one measure of one scorer."""

    system: str
    scorer: str
    measure: str
    difference: Difference
    column: Column


@dataclass(frozen=True)
class Comparison:
    """Everything that the tables and files are made of."""

    systems: list[System]  # the baseline first
    differences: list[Compared]

    @property
    def baseline(self) -> str:
        return self.systems[0].name

    @property
    def metric(self) -> str:
        return str(self.systems[0].scored.card.metric)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "answers", nargs="+", metavar="DIR", help="answers folders, or run folders that hold some"
    )
    parser.add_argument("--split", help="of run folders, take the answers to this split alone")
    parser.add_argument(
        "--pool",
        action="store_true",
        help="answers to the folds of one task (new --folds) as one test, each row once; "
        "differences are taken to plain SFT, if it is there",
    )
    parser.add_argument(
        "--baseline", metavar="DIR", help="what differences are taken to (default: the first)"
    )
    add_some(parser, LEARNED_OPTIONS)
    count = f"draws of rows (default: {RESAMPLES})"
    parser.add_argument("--resamples", type=at_least(100), default=RESAMPLES, help=count)
    seed = f"of the draws (default: {SEED})"
    parser.add_argument("--seed", type=at_least(0), default=SEED, help=seed)
    parser.add_argument("--out", help=f"folder of CSV and JSON (default: {_DEFAULT_OUT})")


def run(args: argparse.Namespace) -> int:
    if args.pool and (args.baseline or args.learned):
        raise UserError(
            "--pool goes without --baseline and --learned",
            where="command line",
            remedy="leave them out; --learned scores each fold on its own",
        )
    first = [] if args.baseline is None else find_folders([args.baseline], args.split)
    if len(first) > 1:
        raise UserError(
            f"'{args.baseline}' holds {len(first)} sets of answers",
            where="--baseline",
            allowed=", ".join(paths.shown(folder) for folder in first[:6]),
            remedy="name one of them",
        )
    folders = find_folders([*first, *args.answers], args.split)
    draws = Draws(args.resamples, args.seed)
    comparison = compare(folders, learned=wanted(args), draws=draws, pool=args.pool)
    console = table_console()
    for grid in system_tables.grids(comparison):
        print_grid(grid, console)
    if args.pool:
        print(_OF_FOLDS)
    written = write(comparison, paths.user_target(args.out or paths.PROJECT / _DEFAULT_OUT))
    print("written: " + ", ".join(paths.shown(path) for path in written))
    return 0


def compare(
    folders: Sequence[Path],
    *,
    learned: Wanted | None = None,
    draws: Draws = USUAL,
    pool: bool = False,
) -> Comparison:
    """Score all folders and take differences to the first.

    `pool` joins the answers to the folds of one task.

    Raises UserError where the folders do not answer the same test.
    """
    saved = [read_saved(folder) for folder in folders]
    loaded = pooled(saved) if pool else [scored(answers) for answers in saved]
    for answers in loaded:
        score_learned(answers, learned or {})
    _need_same_test(loaded)
    systems = [
        System(name, answers, paper=paper_number(answers.settings, trained_spec(answers)))
        for name, answers in zip(system_names(loaded), loaded, strict=True)
    ]
    base, *others = systems
    found = []
    for system in tracked(others, "scoring", "systems", len(others)):
        for key, mine in system.measures.items():
            theirs = base.measures.get(key)
            moved = difference(mine, theirs, draws)
            if moved is not None:
                found.append(Compared(system.name, *key, moved, mine.column))
    return Comparison(systems, found)


def find_folders(named: Sequence[str | Path], split: str | None = None) -> list[Path]:
    """The answers folders that the given paths are or hold, in the given order, each once.

    Where a run folder is searched, answers to general questions are passed over, which have no
    references; and without `split`, answers to other splits than `test` where that was answered.
    Raises UserError for a path without any.
    """
    found: dict[Path, Path] = {}
    for text in named:
        path = paths.user_path(text)
        inside = [path] if find(path / ANSWERS) else _of_a_task(find_below(path, ANSWERS), split)
        if not inside:
            raise UserError(
                f"no saved answers in '{text}'" + (f" to split '{split}'" if split else ""),
                where="command line",
                allowed=f"a folder with {ANSWERS} (or .xz, .gz), or a run folder that holds some",
                remedy="./run.sh eval RECIPE writes them",
            )
        found |= {folder.resolve(): folder for folder in inside}
    return list(found.values())


def _of_a_task(folders: Sequence[Path], split: str | None) -> list[Path]:
    settings = {folder: read_settings(folder) for folder in folders}
    splits = {
        folder: saved.split
        for folder, saved in settings.items()
        if saved.split in load_card(saved.card).splits
    }
    if split is None and "test" in splits.values():
        split = "test"
    return [folder for folder, found in splits.items() if split in (None, found)]


def _need_same_test(loaded: Sequence[Scored]) -> None:
    """Raise UserError unless all answers are to the same rows under the same rules."""
    first, *others = loaded
    for other in others:
        if other.test != first.test:
            raise UserError(
                f"answers to different tests: card '{first.card.name}', split "
                f"'{first.asked.split}' ({paths.shown(first.folder)}) and card "
                f"'{other.card.name}', split '{other.asked.split}' ({paths.shown(other.folder)})",
                where="command line",
                allowed="answers to one split of one card",
                remedy="compare each test on its own; --split picks one out of run folders",
            )


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write scores and differences as CSV, and everything as JSON; return the three files."""
    files = [out / "scores.csv", out / "differences.csv", out / "comparison.json"]
    scores = []
    for system in comparison.systems:
        for number in system.numbers():
            paper = system.paper if number["measure"] == "adherence" else None
            papers = {"paper": paper and paper.value, "paper_source": paper and paper.source}
            scores.append({"system": system.name, **number, **papers})
    differences: list[dict[str, Any]] = [
        {"system": one.system, "baseline": comparison.baseline}
        | {"scorer": one.scorer, "measure": one.measure}
        | {key: getattr(one.difference, key) for key in _OF_DIFFERENCE}
        for one in comparison.differences
    ]
    systems = [
        {
            "name": system.name,
            "folder": paths.shown(system.scored.folder),
            "paper": system.paper and system.paper.model_dump(),
            "scores": system.to_dict(),
        }
        for system in comparison.systems
    ]
    paths.write_text(files[0], to_csv(scores))
    paths.write_text(files[1], to_csv(differences))
    content = {"baseline": comparison.baseline, "systems": systems, "differences": differences}
    write_json(files[2], content, allow_nan=False)
    return files


# --- folds ----------------------------------------------------------------------------------------


def pooled(saved: Sequence[Saved]) -> list[Scored]:
    """The answers of each system to all folds of a task, joined: each row counts once, and was
    answered by a training that did not see it. Plain SFT, if it is there, comes first.

    Raises UserError for answers to another card than a fold's, and for systems that did not answer
    the same folds once.
    """
    systems: dict[tuple[Any, ...], list[tuple[int, Saved]]] = {}
    for answers in saved:
        key, fold = _system_and_fold(answers)
        systems.setdefault(key, []).append((fold, answers))
    every = sorted({fold for parts in systems.values() for fold, _ in parts})
    found = []
    for key, parts in sorted(systems.items(), key=lambda item: item[0][0] != "SFT"):
        parts.sort(key=itemgetter(0))
        folds, answered = zip(*parts, strict=True)
        if list(folds) != every:
            raise UserError(
                f"one system answered fold {_list(folds)}, another fold {_list(every)}",
                where=", ".join(paths.shown(answers.folder) for answers in answered),
                allowed="answers of each system to each fold, once",
                remedy="./run.sh eval the recipes of these folds too, or name other folders",
            )
        rows = open_task(load_card(key[1]), "train", answered[0].settings.anchor)
        task = replace(rows, split=f"{len(every)} folds")
        found.append(joined(answered, task, len(rows)))
    return found


def _list(folds: Iterable[int]) -> str:
    return ", ".join(map(str, folds))


def _system_and_fold(answers: Saved) -> tuple[tuple[Any, ...], int]:
    """What is the same of a system in all folds, its method and task first; the fold's number."""
    found = fold_of(answers.settings.card)
    if found is None:
        raise UserError(
            f"answers to card '{answers.settings.card}', which is no fold",
            where=paths.shown(answers.folder),
            allowed="answers to the cards that ./run.sh new NAME --folds K writes: NAME_fold1 ...",
            remedy="leave --pool out, or name the folds' answers",
        )
    task, fold = found
    spec = trained_spec(answers)
    method = "none" if spec is None else method_of(spec)
    trained = answers.settings.adapter if spec is None else str(spec.with_values(card=task))
    test = tuple(str(getattr(answers.settings, key)) for key in _SAME_IN_ALL_FOLDS)
    return (method, task, trained, *test), fold
