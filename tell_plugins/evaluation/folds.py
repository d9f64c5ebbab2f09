"""Answers to the folds of a task (`new --folds`) as one test, in which each row counts once.

Each row was answered by a system that did not train on it. The systems of the folds are as many
trainings with the same settings; intervals over the rows leave out that these differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import fold_of, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.sources import open_task
from tell_plugins.evaluation.scored import Scored, joined
from tell_plugins.evaluation.system_names import method_of, trained_spec

_OF_THE_TEST = ("anchor", "decoding", "seed", "shots", "scale", "model", "engine")


def pooled(answers: Sequence[Scored]) -> list[Scored]:
    """The answers of each system to all folds, joined; plain SFT, if it is there, comes first.

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
    return [_joined([systems[key][fold] for fold in sorted(every)]) for key in order]


def _system_and_fold(scored: Scored) -> tuple[tuple[Any, ...], int]:
    """What is the same of a system in all folds, its method first; and the fold's number."""
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
    trained = scored.settings["adapter"] if spec is None else str(spec.with_values(card=task))
    test = tuple(str(scored.settings.get(key)) for key in _OF_THE_TEST)
    return (method, task, trained, *test), fold


def _joined(parts: Sequence[Scored]) -> Scored:
    """The answers to several folds as answers to the rows of the whole task."""
    first = parts[0]
    found = fold_of(first.card.name)
    assert found is not None  # `_system_and_fold` checked it
    card = load_card(found[0])
    task = open_task(card, "train", str(first.settings["anchor"]))
    split = f"{len(parts)} folds"
    return joined(parts, replace(task, split=split), len(task))
