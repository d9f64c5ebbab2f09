"""What an earlier sweep left under the same names, where this one must not take it for its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import read_json
from tell_plugins.core.spec import parse_spec
from tell_plugins.evaluation import prompts as prompting
from tell_plugins.evaluation import retention
from tell_plugins.evaluation.answers import GENERAL, SETTINGS, SavedSettings
from tell_plugins.experiments.planning import Evaluation, Planned, PlannedBase, SweepPlan
from tell_plugins.experiments.records import AGAIN, Index
from tell_plugins.experiments.results import Run
from tell_plugins.experiments.store import Store

_HELD_OUT = "held-out rows"


def other_answers(plan: SweepPlan, store: Store) -> Iterator[UserError]:
    """Evaluations whose answers are to other prompts than those of now, or of another length.

    An evaluation is known by the names of card, split and anchor; here is seen whether what they
    stand for has changed since: the test rows, the anchor's text, the held-out general rows, the
    card's `max_new_tokens`.
    """
    asked: dict[str, tuple[Evaluation, list[Path]]] = {}
    runs: list[Planned | PlannedBase] = [*plan.bases, *plan.runs]
    for run in runs:
        folder = store.job(run).eval_folder
        if folder.is_dir():
            asked.setdefault(folder.name, (run.evaluation, []))[1].append(folder)
    for name, (evaluation, folders) in asked.items():
        now, limit = prompts_of(evaluation), _limit_of(evaluation)
        stale = [folder for folder in folders if not _answers(folder, now, limit)]
        if stale:
            more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
            yield UserError(
                "the answers are to other prompts, or of another length: test rows, anchor, "
                "held-out general rows or max_new_tokens have changed since",
                where=paths.shown(stale[0]) + more,
                remedy=f"remove {paths.shown(store.runs)}/*/eval/{name}, or name another folder "
                "with --out",
            )


def prompts_of(evaluation: Evaluation) -> dict[str, str]:
    """What an evaluation asks now: split (`general` for general questions) -> hash of its prompts,
    and under `_HELD_OUT` that of the held-out rows on which losses are taken.

    Raises UserError where the card has fewer rows than are asked.
    """
    spec, options = parse_spec(evaluation.dataset), evaluation.options
    card = load_card(spec.card)
    split, rows = options["split"], options["rows"]
    prompts = {split: prompting.task_prompts(card, split, evaluation.anchor, rows)[1]}
    if options["general_rows"]:
        prompts[GENERAL] = retention.foreign(options["retention_rows"]).questions
    found = {name: prompting.prompts_sha256(asked) for name, asked in prompts.items()}
    if options["general_rows"]:
        held_out = prompting.general_rows([spec], card, options["general_rows"])
        found[_HELD_OUT] = prompting.pairs_sha256(held_out)
    return found


def _limit_of(evaluation: Evaluation) -> int:
    card = load_card(parse_spec(evaluation.dataset).card)
    return prompting.answer_limit(card, evaluation.options["max_new_tokens"])


def _answers(folder: Path, now: Mapping[str, str], limit: int) -> bool:
    """Whether all answers of an evaluation are to these prompts, those of the task this long."""
    found = folder.glob(f"*/*/{SETTINGS}")
    saved = [read_json(path, SavedSettings, AGAIN) for path in found]
    of_task = [s for s in saved if s["split"] != GENERAL]
    known = [s["rows_sha256"] for s in saved if s["split"] == GENERAL and s.get("rows_sha256")]
    return (
        all(s.get("prompts_sha256") == now.get(s["split"]) for s in saved)
        and all(s.get("max_new_tokens") == limit for s in of_task)
        and all(rows == now.get(_HELD_OUT) for rows in known)
    )


def refuse_other_sweep(root: Path, index: Mapping[str, Any], remedy: str) -> None:
    """Raise UserError when `root` holds another sweep under the name of `index`.

    Another one is a sweep with finished runs that the report would forget: whose entries came to
    other runs, or which shares none. More seeds, points or methods are the same sweep, and fewer.
    """
    path = root / "sweeps" / f"{index['name']}.json"
    then = read_json(path, Index, "remove the file: the sweep writes it again")
    if then is None:
        return
    kept = {entry["run"] for entry in index["entries"]}
    lost = [
        entry
        for entry in then["entries"]
        if entry["run"] not in kept
        and Run(root / "runs" / entry["run"]).is_evaluated(entry["evaluation"])
    ]
    places = {_place(entry) for entry in index["entries"]}
    changed = [entry for entry in lost if _place(entry) in places]
    apart = kept.isdisjoint(entry["run"] for entry in then["entries"])
    if lost and (changed or apart or then.get("base_recipe") != index["base_recipe"]):
        first = (changed or lost)[0]
        raise UserError(
            f"a sweep of this name is here with {len(lost)} finished runs that are not this "
            f"sweep's, such as {first['method']}; its report would lose them",
            where=paths.shown(path),
            allowed="the same sweep, with more or fewer seeds, points and methods",
            remedy=remedy,
        )


def _place(entry: Mapping[str, Any]) -> str:
    return json.dumps([entry["method"], entry.get("at"), entry.get("seed")], sort_keys=True)
