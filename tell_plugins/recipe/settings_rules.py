"""Rules on a recipe alone: its keys and values, what goes with a mixture, the model and the run.

Each function `check_...` is a rule, which `check` asks in this order.

ms-swift knows a model by the last part of its name, else by the architecture in its config.json.
What neither tells, here or there, is not judged.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tell_plugins.bridge import mixed_use
from tell_plugins.bridge.embedded_model import is_embedded
from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError, nearest
from tell_plugins.core.mixture import HELD_OUT
from tell_plugins.core.row_files import FORMATS
from tell_plugins.core.shown import secret_keys
from tell_plugins.core.spec import NONE, PREFIX, Spec, is_tell, parse_spec
from tell_plugins.core.state_files import Shape, cached_json, read_json
from tell_plugins.recipe.checked import Finding, as_errors, error, warning
from tell_plugins.recipe.models import may_be_hub_id, model_folder, parameters_of, shape_of
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


# --- what goes with the mixture


def check_uses(recipe: Recipe) -> Iterator[Finding]:
    """Settings of ms-swift that do not go with the mixture, or with its loss."""
    if not any(is_tell(str(entry)) for entry in as_list(recipe.values.get("dataset"))):
        return
    spec = Spec("")
    with contextlib.suppress(UserError):  # the rule on the dataset says what is wrong
        spec = recipe.spec

    def read(key: str) -> Any:
        with contextlib.suppress(UserError):
            return recipe.typed(key) if key in recipe.swift.keys else None
        return None

    for one in mixed_use.misuses(read, spec):
        yield error(one.rule, one.found, recipe.where(one.key), one.remedy)
    where = recipe.where("dataset")
    if spec.kl and spec.task == NONE:
        found = f"with task=0 and kl={spec.kl:g} every row is held to what the model already is, "
        remedy = "take kl out of the dataset string, or ask for task rows"
        yield error("tell-kl-rows", found + "so nothing trains", where, remedy)
    elif spec.kl and spec.general == NONE:
        found = f"kl={spec.kl:g} holds general rows, and general=0 takes none"
        yield warning("tell-kl-rows", found, where, "ask for general rows, for example general=2x")


def check_keeping(recipe: Recipe) -> Iterator[Finding]:
    """Settings under which a row may be lost or cut without an error."""
    if not recipe.flag("strict"):
        found = "'strict' is not true: ms-swift drops rows it cannot encode with one summary line"
        yield warning("tell-strict", found, recipe.where("strict"), "write 'strict: true'")
    strategy = recipe.text("truncation_strategy", "delete")
    if strategy in ("left", "right", "split"):
        tell, why = warning, ": rows over max_length are cut, not refused"
        if strategy == "split":
            tell, why = error, ", which ms-swift has for pre-training only"
        found = f"'truncation_strategy' is {strategy}{why}"
        where = recipe.where("truncation_strategy")
        yield tell("tell-truncation", found, where, "remove it and raise max_length")


def check_plugin(recipe: Recipe) -> Iterator[Finding]:
    """Without the plugin, `tell/...` would be looked up on a hub; no other has its name."""
    where, ours = recipe.where("external_plugins"), "tell_plugins/register.py"
    plugins = [str(part) for part in as_list(recipe.values.get("external_plugins"))]
    others = [part for part in plugins if (paths.PROJECT / part).resolve() != paths.PLUGIN]
    if others == plugins:
        found = f"'external_plugins' does not name {ours}, so ms-swift would look for the data set "
        remedy, allowed = f"write 'external_plugins: [{ours}]'", "a path from the project's folder"
        yield error("tell-plugin", found + "on a hub", where, remedy, allowed)
        return
    for plugin in others:
        if Path(plugin).name == paths.PLUGIN.name:
            found = f"'external_plugins' names '{plugin}' beside {ours}, and ms-swift 4.0 takes "
            found += "the second of two files of one name for the first"
            yield error("tell-plugin", found, where, "rename yours")


def check_validation(recipe: Recipe) -> Iterator[Finding]:
    """TELL strings and files under `val_dataset`."""
    rule, where = "tell-validation", recipe.where("val_dataset")
    for entry in map(str, as_list(recipe.values.get("val_dataset"))):
        file = entry.partition("#")[0]  # NAME#COUNT, as ms-swift reads it
        if not is_tell(entry):
            if file.endswith(FORMATS) and not (paths.PROJECT / file).is_file():
                yield error(rule, f"no file '{file}'", where, "correct the path")
            continue
        try:
            spec = parse_spec(entry, where=where)
            for name in spec.splits:
                load_card(spec.card).split(name)
        except UserError as problem:
            yield from as_errors(rule, problem)
            continue
        if spec.split == "test":
            found = "test rows serve as validation data; what they choose cannot be scored on them"
            remedy = "validate on split=validation, or on rows of another source"
            yield warning(rule, found, where, remedy)
        elif spec.split not in HELD_OUT:
            remedy = f"write {PREFIX}{spec.card}:split=validation, or another split of the card"
            yield warning(rule, f"'{entry}' validates on training rows", where, remedy)


# --- the model and the run

_OF_ANY_MODEL = ("all-linear", "all-embedding", "lm_head", "embed_tokens")
_SLOW = 2e9  # parameters; beyond, a step on a CPU takes minutes


class _Config(Shape):
    architectures: list[str] | None = None


def check_model(recipe: Recipe) -> Iterator[Finding]:
    """A model is named, and a folder that is named holds one."""
    rule, model, where = "tell-model-missing", recipe.text("model"), recipe.where("model")
    folder = model_folder(model)
    if not model:
        yield error(rule, "no 'model'", recipe.where(), "name a hub id or a folder", "model: ...")
    elif is_embedded(model):
        return
    elif folder is None and not may_be_hub_id(model):
        found, allowed = f"no model folder '{model}'", "a folder with config.json, or owner/name"
        remedy = "correct the path (from the project's folder), or name a hub id"
        yield error(rule, found, where, remedy, allowed)
    elif folder is not None:
        file, remedy = folder / "config.json", "name the folder that holds config.json"
        if read_json(file, dict[str, Any], "get the model anew", foreign=True) is None:
            found = f"folder '{model}' holds no config.json, so it is no model"
            yield error(rule, found, where, remedy)


def check_targets(recipe: Recipe) -> Iterator[Finding]:
    """`target_modules` that the model does not have.

    Where its config.json does not tell its layers, ms-swift's table has some of them; then only
    names that models of other kinds have are known to be wrong.
    """
    model, table = recipe.text("model"), recipe.swift.models
    shape, known = shape_of(model), table.known(model)
    kind = recipe.text("model_type") or (known[0] if known else "")
    owner, own = f"type '{kind}'", table.types.get(kind, {}).get("layers") or []
    judged = {layer for entry in table.types.values() for layer in entry["layers"]}
    names = recipe.names("target_modules")
    if shape is not None:
        owner, own, judged = shape.name, list(shape.modules), {n.rpartition(".")[2] for n in names}
    if recipe.given("target_regex") or not own:
        return
    for name in names:
        last = name.rpartition(".")[2]
        if last in judged and last not in (*own, *_OF_ANY_MODEL):
            match = nearest(name, own)
            found = f"'target_modules' names '{name}', and {owner} has no such layers"
            allowed = ", ".join([*own, "all-linear"])
            remedy = f"did you mean '{match}'?" if match else "write 'target_modules: [all-linear]'"
            yield error("tell-targets", found, recipe.where("target_modules"), remedy, allowed)


def check_output(recipe: Recipe) -> Iterator[Finding]:
    """Settings under which no adapter is kept, or not where it is looked for."""
    if recipe.text("save_strategy") == "no":
        found, where = "'save_strategy' is no, so no adapter is kept", recipe.where("save_strategy")
        yield warning("tell-no-save", found, where, "write 'save_strategy: \"epoch\"'")
    folder, shown = recipe.output_dir, paths.shown(recipe.output_dir)
    if not recipe.given("output_dir"):
        found = (
            "no 'output_dir': `swift sft` by itself writes to a folder named after the model, not "
            f"to {shown}, where `./run.sh train` writes and `eval` looks"
        )
        remedy = f"write 'output_dir: output/{recipe.name}'"
        yield warning("tell-output-dir", found, recipe.where(), remedy)
    is_new = recipe.flag("add_version") or recipe.given("resume_from_checkpoint")
    if not is_new and any(map(any, map(folder.glob, ("checkpoint-*", "logging.jsonl")))):
        found = f"'add_version' is false and {shown} already holds a run: the two would mix"
        remedy = "write 'add_version: true', or name another output_dir"
        yield warning("tell-output-mixed", found, recipe.where("add_version"), remedy)


def check_resumed(recipe: Recipe) -> Iterator[Finding]:
    """A checkpoint to resume from that is not there, where ms-swift has a traceback."""
    key = "resume_from_checkpoint"
    named = recipe.text(key)
    if named and not (paths.PROJECT / paths.expanded(named) / "trainer_state.json").is_file():
        found, remedy = f"no checkpoint '{named}'", "name one of the run's checkpoint-N folders"
        allowed = "a folder with trainer_state.json; in a recipe, from the project's folder"
        yield error("tell-checkpoint", found, recipe.where(key), remedy, allowed)


def check_kind(recipe: Recipe) -> Iterator[Finding]:
    """`model_type` against the model, and whether ms-swift can tell the type without it."""
    rule, table = "tell-model-type", recipe.swift.models
    model, given = recipe.text("model"), recipe.text("model_type")
    if _registers_more(recipe) or not model or is_embedded(model):
        return
    architecture, folder = _architecture(recipe), model_folder(model)
    fitting = table.types[given]["architectures"] if given in table.types else []
    if given and given not in table.types:
        yield _not_in_table(rule, "model_type", table.types, recipe)
    elif architecture and fitting and architecture not in fitting:
        found = f"'model_type' is '{given}' ({', '.join(fitting)}), but model '{model}' is "
        remedy = f"write 'model_type: {next(iter(table.types_of(architecture)), None)}', or remove "
        remedy += "it (with --model, the recipe's model_type and template need flags too)"
        where = recipe.where("model_type" if "model_type" not in recipe.flags else "model")
        yield error(rule, found + architecture, where, remedy)
    kinds = table.types_of(architecture)
    is_told = given or table.known(model) or len(kinds) == 1
    if is_told or folder is None or (folder / "args.json").is_file():
        return
    if (folder / "config.json").is_file():
        tell, why = warning, f"its table has no {architecture}"  # it goes on without a template
        if kinds:
            tell, why = error, f"{architecture or 'a config.json without architectures'} may be "
            why += "several"
        found = f"ms-swift cannot tell the type of the model in '{model}': {why}"
        remedy = "name one as 'model_type', and its template as 'template'"
        yield tell(rule, found, recipe.where("model"), remedy, ", ".join(kinds[:12]) or None)


def check_template(recipe: Recipe) -> Iterator[Finding]:
    """`template` against ms-swift's table and against the model's own."""
    rule, table = "tell-template", recipe.swift.models
    model, given = recipe.text("model"), recipe.text("template")
    if _registers_more(recipe) or not model:
        return
    known, kind = table.known(model), recipe.text("model_type")
    if given and given not in table.templates:
        yield _not_in_table(rule, "template", table.templates, recipe)
    elif given and known and known[1] and given != known[1]:
        found = f"'template' is '{given}', but ms-swift's table has '{known[1]}' for '{model}'"
        remedy = f"write 'template: {known[1]}', or remove it"
        yield warning(rule, found, recipe.where("template"), remedy)
    if given or known or kind not in table.types or is_embedded(model):
        return
    several = table.types[kind]["templates"]
    if table.types[kind]["template"] is None and len(several) != 1:
        found = f"models of type '{kind}' have several chat templates, and ms-swift cannot tell "
        where, remedy = recipe.where("model_type"), "name one as 'template'"
        yield error(rule, f"{found}that of '{model}'", where, remedy, ", ".join(several))


def _not_in_table(rule: str, key: str, names: Iterable[str], recipe: Recipe) -> Finding:
    given = recipe.text(key)
    match = nearest(given, names)
    found = f"'{key}' is '{given}', which ms-swift {recipe.swift.version} does not know"
    remedy = f"did you mean '{match}'?" if match else "remove it, or use a name of ms-swift's table"
    return error(rule, found, recipe.where(key), remedy)


def check_cpu(recipe: Recipe) -> Iterator[Finding]:
    """What `use_cpu` does not go with: a large model, and bitsandbytes, which wants a GPU."""
    rule, model, where = "tell-model-cpu", recipe.text("model"), recipe.where("use_cpu")
    if not recipe.flag("use_cpu"):
        return
    parameters = parameters_of(model) or 0
    if recipe.text("quant_method") == "bnb":
        found = "'use_cpu' is true, and 'quant_method: bnb' loads a model on a GPU only"
        yield error(rule, found, where, "remove quant_method and quant_bits, or 'use_cpu: false'")
    if parameters > _SLOW:
        found = f"'use_cpu' is true, and '{model}' has {parameters / 1e9:.1f}e9 parameters"
        allowed = f"up to about {_SLOW / 1e9:.0f}e9 parameters on a CPU"
        remedy = "a GPU and 'use_cpu: false', or a smaller model"
        yield warning(rule, found, where, remedy, allowed)


def check_positions(recipe: Recipe) -> Iterator[Finding]:
    """A `max_length` beyond what the model was trained for."""
    shape, limit = shape_of(recipe.text("model")), recipe.number("max_length")
    if shape is None or not shape.positions or recipe.given("rope_scaling"):
        return
    if limit > shape.positions:
        found = f"'max_length' is {limit:,.0f}, beyond the {shape.positions:,} positions that "
        found += f"{shape.name} was trained for"
        remedy = f"write 'max_length: {shape.positions}', name rope_scaling, or take a model with "
        where = recipe.where("max_length")
        yield warning("tell-positions", found, where, remedy + "a longer context")


def _registers_more(recipe: Recipe) -> bool:
    """Whether another plugin may bring models and templates of its own."""
    return len(as_list(recipe.get("external_plugins"))) > 1


def _architecture(recipe: Recipe) -> str | None:
    """What a folder's config.json says, else what ms-swift knows of the name."""
    model, table = recipe.text("model"), recipe.swift.models
    folder, known = model_folder(model), table.known(model)
    names = table.types[known[0]]["architectures"] if known else None
    if folder is not None and (folder / "config.json").is_file():
        config = cached_json(folder / "config.json", _Config, foreign=True) or {}
        names = config.get("architectures")
    return names[0] if names else None
