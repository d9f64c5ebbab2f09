"""Rules on a recipe's keys and values: what ms-swift would misread, raise late, or not know."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from tell_plugins.bridge import mixed_use
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, nearest
from tell_plugins.core.shown import secret_keys
from tell_plugins.recipe.checked import Finding, as_errors, error, warning
from tell_plugins.recipe.recipes import PATH_KEYS, SECRETS_REMEDY, Recipe, as_json, as_list
from tell_plugins.recipe.swift_keys import SwiftKeys

# names of earlier releases (ms-swift 1 to 3), for which no nearest match would be right
_RENAMED = {
    "sft_type": "tuner_type",
    "train_type": "tuner_type",
    "model_id_or_path": "model",
    "dtype": "torch_dtype",
    "lora_target_modules": "target_modules",
    "batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "custom_register_path": "external_plugins",
    "custom_train_dataset_path": "dataset",
    "train_dataset_sample": "dataset, with task=... and general=... in its string",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
}
# the least and the greatest of numbers that ms-swift takes as they come, or refuses late
_RANGES = {
    "learning_rate": (0.0, math.inf),
    "warmup_ratio": (0.0, 1.0),
    "warmup_steps": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "max_grad_norm": (0.0, math.inf),
    "adam_beta1": (0.0, 1.0),
    "adam_beta2": (0.0, 1.0),
    "adam_epsilon": (0.0, math.inf),
    "lora_rank": (1.0, math.inf),
    "lora_alpha": (1.0, math.inf),
    "lora_dropout": (0.0, 1.0),
    "max_length": (1.0, math.inf),
    "seed": (0.0, 2.0**32 - 1),
}


def check_keys(recipe: Recipe) -> Iterator[Finding]:
    """Keys that the installed ms-swift does not know by their exact name."""
    for key in recipe.values:
        where = recipe.where(key)
        if key not in recipe.swift.keys:
            if not (key == "ENV" and recipe.swift.takes_yaml_first):
                found, remedy = _unknown_key(key, recipe.swift)
                yield error("tell-key-unknown", found, where, remedy)
        elif key not in recipe.flags and (held := list(secret_keys({key: recipe.get(key)}))):
            found = f"'{held[0]}' in a recipe is read by everyone who reads the recipe"
            yield warning("tell-secret", found, where, SECRETS_REMEDY)
        elif key in ("train_type", "custom_register_path"):
            found = f"'{key}' is a name of an earlier ms-swift"
            yield warning("tell-key-renamed", found, where, f"write '{_RENAMED[key]}'")


def _unknown_key(key: str, swift: SwiftKeys) -> tuple[str, str]:
    """What is found, and the remedy."""
    longer = [known for known in swift.keys if known.startswith(key)]
    match = nearest(key, swift.keys)
    found = f"unknown key '{key}': ms-swift {swift.version} has no such key"
    if key == "ENV":
        return found, "set these variables in the shell: only ms-swift 4.1 and later read them here"
    if key == "rlhf_type":
        return mixed_use.PREFERENCES, "train with `swift sft`, and remove the key"
    if key in _RENAMED:
        return found, f"write '{_RENAMED[key]}'"
    if len(longer) == 1:
        found = f"unknown key '{key}': it passes only as the beginning of '{longer[0]}'"
        return found, f"write '{longer[0]}' in full"
    return found, f"did you mean '{match}'?" if match else "remove it"


def check_values(recipe: Recipe) -> Iterator[Finding]:
    """Values that ms-swift would read as something else, or not at all."""
    for key in recipe.values:
        if key in recipe.swift.keys:
            found = next(filter(None, (look(recipe, key) for look in _LOOKS)), None)
            if found is not None:
                yield found


def check_texts(recipe: Recipe) -> Iterator[Finding]:
    """Values that `swift sft` by itself would read otherwise than they are written."""
    for key, written in recipe.written.items():
        value, kind = recipe.get(key), recipe.swift.kind(key)
        is_same = str(value) == written if kind == "str" else not isinstance(value, str)
        if kind in ("str", "int", "float") and (not is_same or _is_octal(written)):
            yield warning(
                "tell-value-text",
                f"'{key}: {written}' is another value to `swift sft` alone, which reads it as a "
                "number of YAML",
                recipe.where(key),
                f"write '{key}: \"{written}\"'" if kind == "str" else "write it in plain digits",
            )


def _is_octal(written: str) -> bool:
    return len(written) > 1 and written.lstrip("+-")[:1] == "0" and written.strip("+-").isdigit()


def check_variables(recipe: Recipe) -> Iterator[Finding]:
    """`$HOME` and the like: ms-swift asks no shell what they stand for."""
    for key, value in recipe.values.items():
        for part in map(str, as_list(value)):
            found = re.search(r"\$\w+|\$\{[^}]*\}" if key in PATH_KEYS else r"\$\{[^}]*\}", part)
            if found and key != "system":
                yield error(
                    "tell-path-variable",
                    f"'{key}' holds {found[0]}, which `train` takes literally",
                    recipe.where(key),
                    "write it out, or give it as a flag: the shell replaces it there",
                )


def _wrong_type(recipe: Recipe, key: str) -> Finding | None:
    value, kind, where = recipe.values[key], recipe.swift.kind(key), recipe.where(key)
    if not recipe.given(key):
        found = f"'{key}' is empty, which ms-swift reads as the text 'None'"
        return error("tell-value-empty", found, where, "remove the key, or give it a value")
    allowed = remedy = ""
    if kind in ("bool", "int", "float"):
        try:
            recipe.typed(key)
        except UserError as problem:
            return as_errors("tell-value-type", problem)[0]
    elif kind == "list":
        parts = as_list(value)
        if not parts or any(part is None or isinstance(part, (bool, dict, list)) for part in parts):
            allowed, remedy = "texts or numbers", "put texts into quotes, or remove the key"
    elif isinstance(value, bool):
        allowed = "a text (YAML reads an unquoted no, yes, on or off as a truth value)"
        remedy = f'put it into quotes: {key}: "{"yes" if value else "no"}"'
    elif kind != "dict" and isinstance(value, (dict, list)):
        allowed, remedy = "one text", "correct the value"
    if not allowed:
        return None
    shown = value if isinstance(value, str) else as_json(value)
    return error("tell-value-type", f"'{key}' is {shown}", where, remedy, allowed)


def _wrong_choice(recipe: Recipe, key: str) -> Finding | None:
    value = str(recipe.values[key])
    if key == "tuner_type" and len(recipe.names("external_plugins")) > 1:
        return None  # a plugin beside ours may bring a tuner
    if key == "deepspeed" and ("{" in value or (paths.PROJECT / paths.expanded(value)).is_file()):
        return None  # a configuration of one's own
    choices = recipe.swift.keys[key]["choices"] or ()
    allowed = [str(choice) for choice in choices if choice is not None]
    if not allowed or value in allowed:
        return None
    match = nearest(value, allowed)
    remedy = f"did you mean '{match}'?" if match else "use one of the allowed values"
    found, told = f"'{key}' is '{value}'", ", ".join(allowed)
    told += ", or a JSON file" if key == "deepspeed" else ""
    return error("tell-value-unknown", found, recipe.where(key), remedy, told)


def _wrong_range(recipe: Recipe, key: str) -> Finding | None:
    low, high = _RANGES.get(key, (-math.inf, math.inf))
    if key not in _RANGES or low <= recipe.number(key) <= high:
        return None
    found, where = f"'{key}' is {recipe.value(key)}", recipe.where(key)
    allowed = f"from {low:g}" + (f" to {high:g}" if high < math.inf else "")
    return error("tell-value-range", found, where, "correct the value", allowed)


def _wrong_list(recipe: Recipe, key: str) -> Finding | None:
    value = recipe.values[key]
    wrong = isinstance(value, list) and any(not isinstance(part, str) for part in value)
    if not wrong or recipe.swift.takes_yaml_first:
        return None
    return warning(
        "tell-value-list",
        f"'{key}' lists other things than text, which stops `swift sft --config`",
        recipe.where(key),
        f"put each into quotes: {as_json([str(part) for part in value])}",
    )


_LOOKS = (_wrong_type, _wrong_choice, _wrong_range, _wrong_list)
RULES = (check_keys, check_values, check_texts, check_variables)
