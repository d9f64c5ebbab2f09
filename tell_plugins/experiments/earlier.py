"""What an earlier sweep left under the same names, where this one must not take it for its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.spec import parse_spec
from tell_plugins.evaluation import prompts as prompting
from tell_plugins.evaluation import retention
from tell_plugins.evaluation.answers import GENERAL, SETTINGS, saved_settings
from tell_plugins.experiments.planning import Evaluation, SweepPlan
from tell_plugins.experiments.results import Study, read_study
from tell_plugins.experiments.store import AGAIN, Store


def other_answers(plan: SweepPlan, store: Store) -> Iterator[UserError]:
    """Evaluations whose answers are to other prompts than those of now, or of another length.

    An evaluation is known by the names of card, split and anchor; here is seen whether what they
    stand for has changed since: the test rows, the anchor's text, the held-out general rows, the
    card's `max_new_tokens`.
    """
    asked: dict[str, tuple[Evaluation, list[Path]]] = {}
    for run in plan.everything:
        folder = store.job(run).eval_folder
        if folder.is_dir():
            asked.setdefault(folder.name, (run.evaluation, []))[1].append(folder)
    for name, (evaluation, folders) in asked.items():
        now = asked_now(evaluation)
        stale = [folder for folder in folders if not _answers(folder, now)]
        if stale:
            more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
            yield UserError(
                "the answers are to other prompts, or of another length: test rows, anchor, "
                "held-out general rows or max_new_tokens have changed since",
                where=paths.shown(stale[0]) + more,
                remedy=f"remove {paths.shown(store.runs)}/*/eval/{name}, or name another folder "
                "with --out",
            )


def asked_now(evaluation: Evaluation) -> dict[bool, dict[str, Any]]:
    """What `eval` would save in its settings now, of the task and, under True, of general
    questions, where these are asked.

    Raises UserError where the card has fewer rows than are asked.
    """
    spec, options = parse_spec(evaluation.dataset), evaluation.options
    card = load_card(spec.card)
    _, task = prompting.task_prompts(card, options["split"], evaluation.anchor, options["rows"])
    found: dict[bool, dict[str, Any]] = {
        False: {
            "prompts_sha256": prompting.prompts_sha256(task),
            "max_new_tokens": prompting.answer_limit(card, options["max_new_tokens"]),
        }
    }
    if options["general_rows"]:
        questions = retention.foreign(options["retention_rows"]).questions
        held_out = prompting.general_rows([spec], card, options["general_rows"])
        found[True] = {
            "prompts_sha256": prompting.prompts_sha256(questions),
            "rows_sha256": prompting.pairs_sha256(held_out),
        }
    return found


def _answers(folder: Path, now: Mapping[bool, Mapping[str, Any]]) -> bool:
    """Whether all answers of an evaluation are as they would be asked for now."""
    for path in folder.glob(f"*/*/{SETTINGS}"):
        saved = saved_settings(path.parent, AGAIN)
        assert saved is not None
        wanted = now.get(saved.split == GENERAL)
        if wanted is None or any(getattr(saved, key) not in ("", wanted[key]) for key in wanted):
            return False
    return True


def refuse_other_sweep(root: Path, now: Study, remedy: str) -> None:
    """Raise UserError when `root` holds another sweep under the name of this one.

    Another one is a sweep with finished runs that the report would forget: whose entries came to
    other runs, or which shares none. More seeds, points or methods are the same sweep, and fewer.
    """
    path = root / "sweeps" / f"{now.name}.json"
    if not path.is_file():
        return
    then = read_study(root, path, "remove the file: the sweep writes it again")
    kept, places = ({entry.run for entry in now.runs}, {entry.place for entry in now.runs})
    lost = [entry for entry in then.runs if entry.run not in kept and entry.done]
    changed = [entry for entry in lost if entry.place in places]
    apart = kept.isdisjoint(entry.run for entry in then.runs)
    if lost and (changed or apart or then.base_recipe != now.base_recipe):
        raise UserError(
            f"a sweep of this name is here with {len(lost)} finished runs that are not this "
            f"sweep's, such as {(changed or lost)[0].method}; its report would lose them",
            where=paths.shown(path),
            allowed="the same sweep, with more or fewer seeds, points and methods",
            remedy=remedy,
        )
