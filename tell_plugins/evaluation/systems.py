"""Which system gave some answers: its name among others, and its answers to folds as one test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import fold_of, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.sources import open_task
from tell_plugins.core.spec import NONE, Spec, parse_spec
from tell_plugins.core.state_files import Shape, cached_json
from tell_plugins.evaluation.adapters import BASE, Adapter
from tell_plugins.evaluation.answers import Scored, Settings, joined
from tell_plugins.evaluation.rivals import RIVALS
from tell_plugins.recipe.recipes import load_recipe

_RUN = "run.json"  # of a sweep: what a run was made with
_SAME_IN_ALL_FOLDS = ("anchor", "decoding", "seed", "shots", "scale", "model", "engine")


class _Run(Shape):
    spec: str = ""


def system_names(systems: Sequence[Scored]) -> list[str]:
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
    adapter, run = scored.settings.adapter, _run_of(scored.folder)
    if adapter in (BASE, *RIVALS):
        return "base" if adapter == BASE else str(adapter)
    spec = _spec_of(scored.settings, run)
    if spec is None:
        return scored.settings.recipe or "unknown"
    return f"{method_of(spec)}, seed {run.get('seed', spec.seed)}"


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
    """The dataset string that a system trained on; None for the base model and what stands in
    its place, which trained nothing."""
    if scored.settings.adapter in (BASE, *RIVALS):
        return None
    return _spec_of(scored.settings, _run_of(scored.folder))


def _run_of(folder: Path) -> Mapping[str, Any]:
    """What a sweep wrote beside a run whose answers lie here, below its folder."""
    files = [parent / _RUN for parent in folder.resolve().parents[:4]]
    runs = (cached_json(file, _Run) or {} for file in files)
    return next((run for run in runs if run.get("spec")), {})


def _spec_of(settings: Settings, run: Mapping[str, Any]) -> Spec | None:
    """What a sweep, the manifest beside the adapter, or else the recipe says."""
    manifest = _saved_manifest(settings.adapter) or {}
    try:
        text = run.get("spec") or manifest.get("spec")
        if text:
            return parse_spec(text)
        name = Path(settings.recipe).stem
        return load_recipe(paths.RECIPES / f"{name}.yaml").spec
    except UserError:
        return None


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
    order = sorted(systems, key=lambda key: key[0] != "SFT")
    return [_joined(key[1], [systems[key][fold] for fold in sorted(every)]) for key in order]


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


def _joined(task: str, parts: Sequence[Scored]) -> Scored:
    """The answers to several folds as answers to the rows of the whole task."""
    rows = open_task(load_card(task), "train", parts[0].settings.anchor)
    return joined(parts, replace(rows, split=f"{len(parts)} folds"), len(rows))
