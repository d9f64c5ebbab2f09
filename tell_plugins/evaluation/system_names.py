"""Which system gave some answers: its name, and what it was trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.spec import NONE, Spec, parse_spec
from tell_plugins.core.state_files import cached_json
from tell_plugins.evaluation.adapters import BASE, Adapter
from tell_plugins.evaluation.answers import Saved
from tell_plugins.evaluation.judged import Scored
from tell_plugins.evaluation.rivals import RIVALS
from tell_plugins.recipe.recipes import load_recipe

_RUN = "run.json"  # of a sweep: what a run was made with


def system_names(systems: Sequence[Scored]) -> list[str]:
    """A name for each set of answers: `TELL, seed 42`; where several have it, their folders'."""
    names = []
    for answers in systems:
        adapter, spec = answers.settings.adapter, trained_spec(answers)
        if adapter in (BASE, *RIVALS):
            names.append("base" if adapter == BASE else str(adapter))
        elif spec is None:
            names.append(answers.settings.recipe or "unknown")
        else:
            seed = _run_of(answers.folder).get("seed", spec.seed)
            names.append(f"{method_of(spec)}, seed {seed}")
    for name in {name for name in names if names.count(name) > 1}:
        places = [place for place, other in enumerate(names) if other == name]
        told_apart = short_names([systems[place].folder for place in places])
        for place, rest in zip(places, told_apart, strict=True):
            names[place] = rest
    return names


def method_of(spec: Spec) -> str:
    """The word for what a mixture trains: `SFT`, `TELL`, `TELL, held` where general rows hold the
    base model, or general rows alone."""
    mixed = "TELL, held" if spec.kl else "TELL"
    if spec.task == NONE:
        return "general rows"
    try:
        amount = spec.general or spec.general_of(load_card(spec.card))[0]
    except UserError:  # the card is not on this machine
        return mixed
    return "SFT" if amount == NONE else mixed


def trained_spec(answers: Saved | Scored) -> Spec | None:
    """The dataset string that a system trained on, as a sweep, the manifest beside the adapter, or
    else the recipe says; None for the base model and what stands in its place, which trained
    nothing."""
    adapter = answers.settings.adapter
    if adapter in (BASE, *RIVALS):
        return None
    text = _run_of(answers.folder).get("spec") or _trained_on(adapter)
    try:
        if text:
            return parse_spec(text)
        return load_recipe(paths.RECIPES / f"{Path(answers.settings.recipe).stem}.yaml").spec
    except UserError:
        return None


def _run_of(folder: Path) -> Mapping[str, Any]:
    """What a sweep wrote beside a run whose answers lie here, below its folder."""
    files = [parent / _RUN for parent in folder.resolve().parents[:4]]
    runs = (cached_json(file, dict[str, Any]) or {} for file in files)
    return next((run for run in runs if run.get("spec")), {})


def _trained_on(adapter: str) -> str:
    """The dataset string of an adapter that saved answers name; "" where it is gone."""
    for folder in (paths.user_path(adapter), paths.PROJECT / adapter):
        with contextlib.suppress(UserError):  # it is damaged
            if found := Adapter("", folder).manifest:
                return str(found["spec"])
    return ""


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
