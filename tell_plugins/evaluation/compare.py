"""`./run.sh compare A B...`: saved answers side by side, under every scorer.

Each system has its scores with intervals, and its differences to a baseline, paired over the test
rows that both answered. Answers to different tests are never put into one table.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import fold_of, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.progress import tracked
from tell_plugins.core.sources import open_task
from tell_plugins.core.spec import NONE, Spec, parse_spec
from tell_plugins.core.state_files import Shape, cached_json, find, find_below, write_json
from tell_plugins.evaluation import scorers
from tell_plugins.evaluation.adapters import BASE, Adapter
from tell_plugins.evaluation.answers import ANSWERS, Scored, joined, load_scored, read_settings
from tell_plugins.evaluation.differences import Difference, difference
from tell_plugins.evaluation.grids import print_grid, table_console, to_csv
from tell_plugins.evaluation.judged import Column
from tell_plugins.evaluation.paper_numbers import PaperNumber, paper_number
from tell_plugins.evaluation.rivals import RIVALS
from tell_plugins.evaluation.scorers.learned import Wanted, score_learned, wanted
from tell_plugins.evaluation.scoring import System
from tell_plugins.evaluation.significance import RESAMPLES, SEED
from tell_plugins.recipe.recipes import load_recipe

_TEST = "test"
_RUN = "run.json"  # of a sweep: what a run was made with
_SAME_IN_ALL_FOLDS = ("anchor", "decoding", "seed", "shots", "scale", "model", "engine")
_DEFAULT_OUT = "output/compare"
_OF_FOLDS = (
    "Each row was answered by a training that did not see it, one a fold. The intervals are over "
    "the rows; that the trainings differ is not in them."
)


@dataclass(frozen=True)
class Compared:
    """A system's difference to the baseline in one measure of one scorer."""

    system: str
    scorer: str
    measure: str
    difference: Difference
    column: Column


@dataclass(frozen=True)
class Comparison:
    """Everything that the tables and files are made of."""

    systems: list[System]
    baseline: str
    differences: list[Compared]

    @property
    def metric(self) -> str:
        return self.systems[0].scores.metric


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
    parser.add_argument(
        "--learned", default="", help="also compute bleurt, comet, or both: bleurt,comet"
    )
    parser.add_argument("--bleurt", metavar="MODEL", help="BLEURT checkpoint (or $TELL_BLEURT)")
    parser.add_argument("--comet", metavar="MODEL", help="COMET checkpoint (or $TELL_COMET)")
    parser.add_argument(
        "--resamples", type=int, default=RESAMPLES, help=f"draws of rows (default: {RESAMPLES})"
    )
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the draws (default: {SEED})")
    parser.add_argument("--out", help=f"folder of CSV and JSON (default: {_DEFAULT_OUT})")


def run(args: argparse.Namespace) -> int:
    from tell_plugins.evaluation import compare_tables

    _check(args)
    folders = find_folders(args.answers, args.split)
    baseline = None
    if args.baseline is not None:
        baseline = _one_folder(args.baseline, args.split)
        if baseline.resolve() not in {folder.resolve() for folder in folders}:
            folders = [baseline, *folders]
    comparison = compare(
        folders,
        baseline=baseline,
        learned=wanted(args),
        resamples=args.resamples,
        seed=args.seed,
        pool=args.pool,
    )
    console = table_console()
    for grid in compare_tables.grids(comparison):
        print_grid(grid, console)
    if args.pool:
        print(_OF_FOLDS)
    out = paths.user_target(args.out) if args.out else paths.PROJECT / _DEFAULT_OUT
    written = write(comparison, out)
    print("written: " + ", ".join(paths.shown(path) for path in written))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.resamples < 100:
        raise UserError(
            f"{args.resamples} resamples",
            where="--resamples",
            allowed="100 and more",
            remedy="2000",
        )
    if args.seed < 0:
        raise UserError(
            f"seed {args.seed}", where="--seed", allowed="0 and more", remedy="leave it out"
        )
    if args.pool and (args.baseline or args.learned):
        raise UserError(
            "--pool goes without --baseline and --learned",
            where="command line",
            remedy="leave them out; --learned scores each fold on its own",
        )


def compare(
    folders: Sequence[Path],
    *,
    baseline: Path | None = None,
    learned: Wanted | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    pool: bool = False,
) -> Comparison:
    """Score all folders and take differences to `baseline` (default: the first).

    `pool` joins the answers to the folds of one task.

    Raises UserError where the folders do not answer the same test.
    """
    loaded = [load_scored(folder) for folder in folders]
    for scored in loaded:
        score_learned(scored, learned or {})
    if pool:
        loaded = pooled(loaded)
    _need_same_test(loaded)
    named = list(zip(_system_names(loaded), loaded, strict=True))
    systems = [System(name, scored, paper=_paper(scored)) for name, scored in named]
    for system in tracked(systems, "scoring", "systems", len(systems)):
        system.scores  # noqa: B018 - judged here, where its progress is shown
    base = systems[0]
    if baseline is not None:
        base = next(s for s in systems if s.scored.folder.resolve() == baseline.resolve())
    differences = _differences(systems, base, resamples=resamples, seed=seed)
    return Comparison(systems, base.name, list(differences))


def _paper(scored: Scored) -> PaperNumber | None:
    return paper_number(scored.card.name, scored.settings, trained_spec(scored))


def find_folders(named: Sequence[str], split: str | None = None) -> list[Path]:
    """The answers folders that the given paths are or hold, in the given order, each once.

    Where a run folder is searched, answers to general questions are passed over, which have no
    references; and without `split`, answers to other splits than `test` where that was answered.
    Raises UserError for a path without any.
    """
    found: dict[Path, Path] = {}
    for text in named:
        path = paths.user_path(text)
        if find(path / ANSWERS):
            inside = [path]
        else:
            inside = _of_a_task(find_below(path, ANSWERS) if path.is_dir() else [], split)
        if not inside:
            raise UserError(
                f"no saved answers in '{text}'" + (f" to split '{split}'" if split else ""),
                where="command line",
                allowed=f"a folder with {ANSWERS} (or .xz, .gz), or a run folder that holds some",
                remedy="./run.sh eval RECIPE writes them",
            )
        for folder in inside:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _one_folder(text: str, split: str | None) -> Path:
    folders = find_folders([text], split)
    if len(folders) > 1:
        raise UserError(
            f"'{text}' holds {len(folders)} sets of answers",
            where="--baseline",
            allowed=", ".join(paths.shown(folder) for folder in folders[:6]),
            remedy="name one of them",
        )
    return folders[0]


def _of_a_task(folders: Sequence[Path], split: str | None) -> list[Path]:
    splits = {}
    for folder in folders:
        settings = read_settings(folder)
        if settings.split in load_card(settings.card).splits:
            splits[folder] = settings.split
    if split is None and _TEST in splits.values():
        split = _TEST
    return [folder for folder, found in splits.items() if split in (None, found)]


def _need_same_test(loaded: Sequence[Scored]) -> None:
    """Raise UserError unless all answers are to the same rows under the same rules."""
    first = loaded[0]
    labels = scorers.right(first.task).labels  # some cards take them from their training rows
    for other in loaded[1:]:
        if other.test != first.test or scorers.right(other.task).labels != labels:
            raise UserError(
                f"answers to different tests: card '{first.card.name}', split "
                f"'{first.task.split}' ({paths.shown(first.folder)}) and card "
                f"'{other.card.name}', split '{other.task.split}' ({paths.shown(other.folder)})",
                where="command line",
                allowed="answers to one split of one card",
                remedy="compare each test on its own; --split picks one out of run folders",
            )


def _differences(
    systems: Sequence[System], base: System, *, resamples: int, seed: int
) -> Iterator[Compared]:
    others = [system for system in systems if system is not base]
    for system in tracked(others, "differences", "systems", len(others)):
        for key, mine in system.measures.items():
            theirs = base.measures.get(key)
            found = difference(mine, theirs, resamples=resamples, seed=seed)
            if found is not None:
                yield Compared(system.name, *key, found, mine.column)


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write scores and differences as CSV, and everything as JSON; return the three files."""
    from tell_plugins.evaluation.compare_tables import score_records

    files = [out / "scores.csv", out / "differences.csv", out / "comparison.json"]
    paths.write_text(files[0], to_csv(score_records(comparison)))
    records = [
        {
            **{"system": found.system, "baseline": comparison.baseline},
            **{"scorer": found.scorer, "measure": found.measure},
            **found.difference.record,
        }
        for found in comparison.differences
    ]
    paths.write_text(files[1], to_csv(records))
    first = comparison.systems[0].scores
    content = {
        "card": first.card,
        "split": first.split,
        "metric": first.metric,
        "baseline": comparison.baseline,
        "systems": [
            {
                "name": system.name,
                "folder": paths.shown(system.scored.folder),
                "paper": None if system.paper is None else system.paper.model_dump(),
                "scores": system.scores.to_dict(),
            }
            for system in comparison.systems
        ],
        "differences": records,
    }
    write_json(files[2], content, allow_nan=False)
    return files


# --- which system gave some answers ---------------------------------------------------------------


class _Run(Shape):
    spec: str = ""


def _system_names(systems: Sequence[Scored]) -> list[str]:
    """A name for each set of answers: `TELL, seed 42`; where several have it, their folders'."""
    names = [_name(scored) for scored in systems]
    places = defaultdict(list)
    for place, name in enumerate(names):
        places[name].append(place)
    for group in places.values():
        if len(group) > 1:
            folders = [systems[place].folder for place in group]
            for place, rest in zip(group, short_names(folders), strict=True):
                names[place] = rest
    return names


def _name(scored: Scored) -> str:
    adapter, spec = scored.settings.adapter, trained_spec(scored)
    if adapter in (BASE, *RIVALS):
        return "base" if adapter == BASE else str(adapter)
    if spec is None:
        return scored.settings.recipe or "unknown"
    return f"{method_of(spec)}, seed {_run_of(scored.folder).get('seed', spec.seed)}"


def method_of(spec: Spec) -> str:
    """The field's word for what a mixture trains: `SFT`, `TELL`, or general rows alone."""
    amount = spec.general
    if amount is None:
        try:
            card = load_card(spec.card)
        except UserError:
            return "TELL"
        amount = card.general.amount if card.general else NONE
    if spec.task == NONE:
        return "general rows"
    return "SFT" if amount == NONE else "TELL"


def trained_spec(scored: Scored) -> Spec | None:
    """The dataset string that a system trained on, as a sweep, the manifest beside the adapter, or
    else the recipe says; None for the base model and what stands in its place, which trained
    nothing."""
    adapter = scored.settings.adapter
    if adapter in (BASE, *RIVALS):
        return None
    text = _run_of(scored.folder).get("spec") or (_saved_manifest(adapter) or {}).get("spec")
    try:
        if text:
            return parse_spec(text)
        return load_recipe(paths.RECIPES / f"{Path(scored.settings.recipe).stem}.yaml").spec
    except UserError:
        return None


def _run_of(folder: Path) -> Mapping[str, Any]:
    """What a sweep wrote beside a run whose answers lie here, below its folder."""
    files = [parent / _RUN for parent in folder.resolve().parents[:4]]
    runs = (cached_json(file, _Run) or {} for file in files)
    return next((run for run in runs if run.get("spec")), {})


def _saved_manifest(adapter: str) -> dict[str, Any] | None:
    """The manifest beside an adapter that saved answers name; None where it is gone or damaged."""
    for folder in (paths.user_path(adapter), paths.PROJECT / adapter):
        try:
            manifest = Adapter("", folder).manifest()
        except UserError:
            continue
        if manifest is not None:
            return manifest
    return None


def short_names(folders: Sequence[Path]) -> list[str]:
    """The parts of the paths that tell the folders apart."""
    parts = [list(folder.resolve().parts) for folder in folders]
    if len(parts) == 1:
        return ["/".join(parts[0][-2:])]
    for end in (0, -1):
        while all(len(p) > 1 for p in parts) and len({p[end] for p in parts}) == 1:
            for part in parts:
                del part[end]
    return ["/".join(part) for part in parts]


# --- folds ----------------------------------------------------------------------------------------


def pooled(answers: Sequence[Scored]) -> list[Scored]:
    """The answers of each system to all folds of a task, joined: each row counts once, and was
    answered by a training that did not see it. Plain SFT, if it is there, comes first.

    Raises UserError for answers to another card than a fold's, two sets of one system to a fold,
    or systems that did not answer the same folds.
    """
    systems: dict[tuple[Any, ...], dict[int, Scored]] = {}
    for scored in answers:
        key, fold = _system_and_fold(scored)
        other = systems.setdefault(key, {}).setdefault(fold, scored)
        if other is not scored:
            raise UserError(
                f"two sets of answers of one system to fold {fold}: {paths.shown(other.folder)} "
                f"and {paths.shown(scored.folder)}",
                where="--pool",
                remedy="name the folders of one run each",
            )
    every = {fold for folds in systems.values() for fold in folds}
    for folds in systems.values():
        if missing := sorted(every - folds.keys()):
            first = next(iter(folds.values()))
            raise UserError(
                f"no answers to fold {', '.join(map(str, missing))} of the system that answered "
                f"in {paths.shown(first.folder)}",
                where="--pool",
                remedy="./run.sh eval the recipes of these folds too, or name other folders",
            )
    found = []
    for key in sorted(systems, key=lambda key: key[0] != "SFT"):
        parts = [systems[key][fold] for fold in sorted(every)]
        rows = open_task(load_card(key[1]), "train", parts[0].settings.anchor)
        found.append(joined(parts, replace(rows, split=f"{len(parts)} folds"), len(rows)))
    return found


def _system_and_fold(scored: Scored) -> tuple[tuple[Any, ...], int]:
    """What is the same of a system in all folds, its method and task first; the fold's number."""
    found = fold_of(scored.card.name)
    if found is None:
        raise UserError(
            f"answers to card '{scored.card.name}', which is no fold",
            where=paths.shown(scored.folder),
            allowed="answers to the cards that ./run.sh new NAME --folds K writes: NAME_fold1 ...",
            remedy="leave --pool out, or name the folds' answers",
        )
    task, fold = found
    spec = trained_spec(scored)
    method = "none" if spec is None else method_of(spec)
    trained = scored.settings.adapter if spec is None else str(spec.with_values(card=task))
    test = tuple(str(getattr(scored.settings, key)) for key in _SAME_IN_ALL_FOLDS)
    return (method, task, trained, *test), fold
