"""Rules on the model and the run; ms-swift's own tables against what the recipe says.

ms-swift knows a model by the last part of its name, else by the architecture in its config.json.
What neither tells, here or there, is not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tell_plugins.bridge.embedded_model import is_embedded
from tell_plugins.core import paths
from tell_plugins.core.errors import nearest
from tell_plugins.core.state_files import Shape, cached_json, read_json
from tell_plugins.recipe.checked import Finding, error, warning
from tell_plugins.recipe.models import may_be_hub_id, model_folder, parameters_of, shape_of
from tell_plugins.recipe.recipes import Recipe, as_list

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
