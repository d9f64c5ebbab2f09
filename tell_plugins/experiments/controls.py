"""The controls that tell what TELL's gain is made of, as a grid for any recipe.

Their table is `controls.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.evaluation import rivals
from tell_plugins.experiments.sweep import RIVAL, Sweep, make_sweep
from tell_plugins.recipe.recipes import load_recipe

TELL = "TELL"
# name -> what it `sets`, and what it `tells`
CONTROLS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("controls.yaml").read_text(encoding="utf-8")
)


def controls(
    recipe: str,
    *,
    changes: Mapping[str, Any],
    seeds: list[int],
    evaluate: Mapping[str, Any],
    flags: Mapping[str, Any],
) -> Sweep:
    """The control grid of a recipe.

    Args:
        changes: keys of the dataset string that replace the recipe's (`task`, `general`, `from`).
        evaluate: what is asked, as under `evaluate` in a sweep file.
        flags: keys of ms-swift that replace the recipe's.
    """
    base = load_recipe(recipe)
    amounts = "_".join(str(value).replace("+", "_") for value in changes.values())
    name = "_".join(part for part in ("controls", base.name, amounts) if part)
    card = load_card(base.spec.card)

    def fits(settings: Mapping[str, Any]) -> bool:
        is_rival = RIVAL in settings
        return not is_rival or (card.kind == "task" and rivals.fits(settings[RIVAL], card))

    all_settings = {method: control["sets"] for method, control in CONTROLS.items()}
    shown = ", ".join(f"{key}={value}" for key, value in changes.items())
    raw = {
        "title": f"Controls of {base.name}" + (f" ({shown})" if shown else ""),
        "base": str(base.path),
        "runs": {m: {**changes, **sets} for m, sets in all_settings.items() if fits(sets)},
        "seeds": seeds,
        "evaluate": dict(evaluate),
        "plot": {"reference": TELL},
    }
    return make_sweep(raw, name, f"controls of {paths.shown(base.path)}", flags)


def meaning(method: str) -> str:
    """What a control tells, "" for a method that is none."""
    return str(CONTROLS.get(method, {}).get("tells", ""))
