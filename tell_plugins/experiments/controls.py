"""The controls that tell what TELL's gain is made of, as one grid for any recipe.

The paper compares TELL with the same task rows alone at batch 16 and one epoch. That run takes
far fewer optimizer steps, so its comparison cannot separate "general data helps" from "more steps
help". Each control here changes one thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.evaluation import rivals
from tell_plugins.experiments.sweep import Settings, Sweep, make_sweep
from tell_plugins.recipe.recipes import load_recipe

TELL = "TELL"

# name -> (settings, what it tells)
CONTROLS: dict[str, tuple[Settings, str]] = {
    TELL: ({"order": "shuffle"}, "the method: task rows with anchor, shuffled among general rows"),
    "SFT, as in the paper": (
        {"general": "0", "repeat": 1},
        "the same task rows alone; fewer steps, and none at all when the rows fill one batch",
    ),
    "SFT, batch 1": (
        {
            "general": "0",
            "repeat": 1,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
        },
        "the same task rows alone, a step a row",
    ),
    "SFT, repeated": (
        {"general": "0", "repeat": 1, "order": "even", "equal_steps": TELL},
        "the same task rows alone, repeated (spaced) to TELL's steps: what steps alone do",
    ),
    "general only": (
        {"general_only": TELL},
        "TELL's general rows alone: what general data does without the task",
    ),
    "TELL, random text": (
        {"random_text": TELL, "equal_steps": TELL},
        "shuffled words for general rows: steps and regularisation without knowledge",
    ),
    "TELL, no anchor": (
        {"order": "shuffle", "anchor": "none", "equal_steps": TELL},
        "without the anchor, in training and at test: what the anchor adds",
    ),
    "TELL, even order": (
        {"order": "even", "equal_steps": TELL},
        "task rows evenly spaced: what is left to chance by the shuffle",
    ),
    "TELL, task first": (
        {"order": "task_first", "equal_steps": TELL},
        "no shuffle, the task before the general rows",
    ),
    "TELL, task last": (
        {"order": "task_last", "equal_steps": TELL},
        "no shuffle, the task after the general rows",
    ),
    "TELL, test queries kept": (
        {"order": "shuffle", "overlap": "keep", "equal_steps": TELL},
        "general rows that hold test queries are kept: what that leak is worth",
    ),
}

# the same for what is not trained at all, where the card's answers are of its kind
RIVALS: dict[str, tuple[Settings, str]] = {
    "base with examples": (
        {"rival": "shots"},
        "no training: as many of the task rows in front of each question as fit",
    ),
    "label scoring": (
        {"rival": "choices"},
        "no training: of the closed answers the one that the base model finds likeliest",
    ),
    "word counting": (
        {"rival": "words"},
        "no language model: TF-IDF and logistic regression on the same task rows",
    ),
}


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
    where = f"controls of {paths.shown(base.path)}"
    card = load_card(base.spec.card)
    fitting = {
        rival: told
        for rival, told in RIVALS.items()
        if card.kind == "task" and rivals.fits(str(told[0]["rival"]), card)
    }
    methods = {**CONTROLS, **fitting}
    runs = {method: {**changes, **settings} for method, (settings, _) in methods.items()}
    shown = ", ".join(f"{key}={value}" for key, value in changes.items())
    raw = {
        "title": f"Controls of {base.name}" + (f" ({shown})" if shown else ""),
        "base": str(base.path),
        "runs": runs,
        "seeds": seeds,
        "evaluate": dict(evaluate),
        "plot": {"reference": TELL},
    }
    return make_sweep(raw, name, where, flags)


def meaning(method: str) -> str:
    """What a control tells, "" for a method that is none."""
    return {**CONTROLS, **RIVALS}.get(method, ({}, ""))[1]
