"""A pattern for a model that no recipe here trains: what ms-swift's own tables say of it.

`new --model Qwen/Qwen3-4B` or `--model ./my_model`. ms-swift finds type and chat template by
the name or by the architecture in config.json; what it cannot tell has to be named.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, nearest, raise_all, unknown
from tell_plugins.preparation.task_recipe import short_names
from tell_plugins.recipe.model_rules import check_kind, check_template
from tell_plugins.recipe.models import model_folder
from tell_plugins.recipe.recipes import Recipe, load_recipe
from tell_plugins.recipe.settings import Settings
from tell_plugins.recipe.shapes import readable_shape
from tell_plugins.recipe.swift_keys import ModelTable, swift_keys

PATTERN = "llama2_json"  # its settings for a 24 GB card are those of any model of its size
_DATA = "tell/sample_complaints"  # and its general data are those that come along
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z])", re.IGNORECASE)
_WITHOUT_THINKING = (
    "; answers without a think block (enable_thinking: false), as your rows have none: ms-swift "
    "4.0 would let it think in answers, 4.6 not, and both train it on an empty block"
)
_SMALL, _LARGE = 0.6e9, 3e9  # parameters
# learning rates by size. The paper's for 7B; of SmolLM2-135M's readings, a fourth; between them
# by eye. None was measured at its size
_RATES = ((_SMALL, 1.0e-3), (_LARGE, 4.0e-4), (float("inf"), 1.0e-4))


def any_model(model: str, model_type: str | None, template: str | None) -> tuple[Recipe, str]:
    """A recipe to start from, and what was assumed, in a sentence.

    Raises UserError where neither ms-swift nor the folder tells what model it is, and MachineError
    where ms-swift cannot be asked.
    """
    folder = model_folder(model)
    if folder is None and "/" not in model and nearest(model, short_names()):
        raise unknown("model", model, short_names(), "--model")  # without asking ms-swift
    keys = swift_keys()
    known = keys.models.known(model)
    if folder is None and known is None and model_type is None:
        raise _unknown(model, keys.models)
    values: dict[str, Any] = {
        "model": str(folder) if folder is not None else model,
        "model_type": model_type,
        "template": template,
        "dataset": [_DATA],
        "target_modules": ["all-linear"],
    }
    size = parameters(model)
    values["learning_rate"] = next(rate for most, rate in _RATES if (size or _LARGE) < most)
    values["gradient_checkpointing"] = size is None or size > _SMALL
    chosen = template or (known[1] if known else None)
    is_hybrid = chosen in keys.models.hybrid
    if is_hybrid:
        values["enable_thinking"] = False
    recipe = load_recipe(paths.RECIPES / f"{PATTERN}.yaml").with_values(**values)
    raise_all(list(_untold(Settings(recipe, keys))))
    kind = model_type or (known[0] if known else "found by ms-swift in its config.json")
    told = f"{size / 1e9:.2g}B parameters" if size else "a size that its name does not tell"
    rate = f"learning rate {values['learning_rate']:g}, not measured for it"
    said = f"{model}: type {kind}, {told}; assumed: LoRA on all linear layers, {rate}"
    return recipe, said + (_WITHOUT_THINKING if is_hybrid else "")


def _untold(settings: Settings) -> Iterator[UserError]:
    """What of the model ms-swift could not tell, with the flag of `new` as remedy."""
    rules = (check_kind, check_template)
    for finding in (found for rule in rules for found in rule(settings.recipe, settings)):
        if finding.severity == "error":
            problem = finding.problem
            yield UserError(
                problem.found,
                where="--model",
                allowed=problem.allowed,
                remedy="name it: --model-type TYPE, and --template NAME where that has several",
            )


def _unknown(model: str, table: ModelTable) -> UserError:
    name = model.rstrip("/").rpartition("/")[2].lower()
    close = difflib.get_close_matches(name, table.names, n=1, cutoff=0.85)
    say = "or say what it is: --model-type TYPE --template NAME"
    return UserError(
        f"no folder '{model}', and no model of that name in ms-swift's table",
        where="--model",
        allowed="qwen, llama2, gemma, smollm2; a recipe file; a folder with a model; an id that "
        "ms-swift knows, such as Qwen/Qwen3-4B",
        remedy=f"did you mean '{close[0]}'? {say}" if close else say[3:],
    )


def parameters(model: str) -> float | None:
    """How many parameters a model has, by its config.json or by the size in its name."""
    shape = readable_shape(model)
    if shape is not None:
        return float(shape.parameters)
    found = _SIZE.search(model.rstrip("/").rpartition("/")[2].replace("-", " ").replace("_", " "))
    if found is None:
        return None
    return float(found[1]) * (1e9 if found[2] in "bB" else 1e6)
