"""Rules on a recipe's keys and values: what ms-swift would misread, raise late, or not know."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import islice

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
    **dict.fromkeys(("learning_rate", "warmup_steps", "weight_decay"), (0.0, math.inf)),
    **dict.fromkeys(("max_grad_norm", "adam_epsilon"), (0.0, math.inf)),
    **dict.fromkeys(("warmup_ratio", "adam_beta1", "adam_beta2", "lora_dropout"), (0.0, 1.0)),
    **dict.fromkeys(("lora_rank", "lora_alpha", "max_length"), (1.0, math.inf)),
    "seed": (0.0, 2.0**32 - 1),
}
_HIGH_RATE = 5e-3  # beyond what LoRA runs use; a lost minus sign or power is likelier


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
    """Values that ms-swift would read as something else, or not at all; one finding a key."""
    for key in recipe.values:
        if key in recipe.swift.keys:
            yield from islice(_wrong(recipe, key), 1)


def _wrong(recipe: Recipe, key: str) -> Iterator[Finding]:
    value, kind, where = recipe.values[key], recipe.swift.kind(key), recipe.where(key)
    if not recipe.given(key):
        found = f"'{key}' is empty, which ms-swift reads as the text 'None'"
        yield error("tell-value-empty", found, where, "remove the key, or give it a value")
    try:
        recipe.typed(key)
    except UserError as problem:
        yield from as_errors("tell-value-type", problem)
    if allowed := _other_kind(value, kind):
        found = f"'{key}' is {value if isinstance(value, str) else as_json(value)}"
        remedy = "put texts into quotes, or remove the key"
        if isinstance(value, bool) and kind != "list":
            remedy = f'put it into quotes: {key}: "{"yes" if value else "no"}"'
        yield error("tell-value-type", found, where, remedy, allowed)
    yield from _wrong_choice(recipe, key)
    low, high = _RANGES.get(key, (-math.inf, math.inf))
    if key in _RANGES and not low <= recipe.number(key) <= high:
        allowed = f"from {low:g}" + (f" to {high:g}" if high < math.inf else "")
        found = f"'{key}' is {recipe.value(key)}"
        yield error("tell-value-range", found, where, "correct the value", allowed)
    texts = [str(part) for part in as_list(value)]
    if isinstance(value, list) and value != texts and not recipe.swift.takes_yaml_first:
        found = f"'{key}' lists other things than text, which stops `swift sft --config`"
        yield warning("tell-value-list", found, where, f"put each into quotes: {as_json(texts)}")


def _other_kind(value: object, kind: str) -> str:
    """What is allowed where a value is of another kind than its key; of numbers, `typed` says."""
    if kind == "list":
        parts = as_list(value)
        strange = any(part is None or isinstance(part, (bool, dict, list)) for part in parts)
        return "texts or numbers" if strange or not parts else ""
    if kind not in ("bool", "int", "float") and isinstance(value, bool):
        return "a text (YAML reads an unquoted no, yes, on or off as a truth value)"
    return "one text" if kind == "str" and isinstance(value, (dict, list)) else ""


def _wrong_choice(recipe: Recipe, key: str) -> Iterator[Finding]:
    value = str(recipe.values[key])
    own_tuner = key == "tuner_type" and len(recipe.names("external_plugins")) > 1
    own_file = key == "deepspeed" and (paths.PROJECT / paths.expanded(value)).is_file()
    choices = [str(one) for one in recipe.swift.keys[key]["choices"] or () if one is not None]
    if not choices or value in choices or own_tuner or own_file or value.startswith("{"):
        return
    match = nearest(value, choices)
    remedy = f"did you mean '{match}'?" if match else "use one of the allowed values"
    allowed = ", ".join(choices) + (", or a JSON file" if key == "deepspeed" else "")
    yield error("tell-value-unknown", f"'{key}' is '{value}'", recipe.where(key), remedy, allowed)


def check_texts(recipe: Recipe) -> Iterator[Finding]:
    """Values that `swift sft` by itself would read otherwise than they are written."""
    for key, written in recipe.written.items():
        value, kind = recipe.get(key), recipe.swift.kind(key)
        is_same = str(value) == written if kind == "str" else not isinstance(value, str)
        octal = re.fullmatch("[+-]?0[0-9]+", written)
        if kind in ("str", "int", "float") and (octal or not is_same):
            found = f"'{key}: {written}' is another value to `swift sft` alone, which reads it as "
            found += "a number of YAML"
            remedy = f"write '{key}: \"{written}\"'" if kind == "str" else "write plain digits"
            yield warning("tell-value-text", found, recipe.where(key), remedy)


def check_variables(recipe: Recipe) -> Iterator[Finding]:
    """`$HOME` and the like: ms-swift asks no shell what they stand for."""
    for key, value in recipe.values.items():
        pattern = r"\$\w+|\$\{[^}]*\}" if key in PATH_KEYS else r"\$\{[^}]*\}"
        for part in map(str, as_list(value)):
            found = re.search(pattern, part) if key != "system" else None
            if found:
                text = f"'{key}' holds {found[0]}, which `train` takes literally"
                remedy = "write it out, or give it as a flag: the shell replaces it there"
                yield error("tell-path-variable", text, recipe.where(key), remedy)


def check_rate(recipe: Recipe) -> Iterator[Finding]:
    """A learning rate that is hardly meant."""
    rate = recipe.number("learning_rate", 1e-4)
    if rate > _HIGH_RATE:
        found = f"'learning_rate' is {rate:g}; the paper's is 1e-4"
        where, remedy = recipe.where("learning_rate"), "check the exponent's sign"
        yield warning("tell-rate-high", found, where, remedy)
