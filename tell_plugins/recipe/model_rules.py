"""Rules on the model and the run; ms-swift's own tables against what the recipe says.

ms-swift knows a model by the last part of its name, else by the architecture in its config.json.
What neither tells, here or there, is not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tell_plugins.bridge.embedded_model import is_embedded
from tell_plugins.core import paths
from tell_plugins.core.errors import nearest
from tell_plugins.core.state_files import Shape, cached_json, read_json
from tell_plugins.recipe.checked import Checked, Finding, error, warning
from tell_plugins.recipe.models import may_be_hub_id, model_folder
from tell_plugins.recipe.recipes import Recipe, as_list
from tell_plugins.recipe.settings import Settings
from tell_plugins.recipe.shapes import parameters_of, shape_of

_OF_ANY_MODEL = ("all-linear", "all-embedding", "lm_head", "embed_tokens")
_SLOW = 2e9  # parameters; beyond, a step on a CPU takes minutes


class _Config(Shape):
    architectures: list[str] | None = None


def check_model(checked: Checked) -> Iterator[Finding]:
    """A model is named, and a folder that is named holds one."""
    recipe = checked.recipe
    if not recipe.values.get("model"):
        found = "no 'model'"
        allowed = "model: ..."
        remedy = "name a hub id or a folder"
        yield error("tell-model-missing", found, recipe.where(), remedy, allowed)
        return
    model = str(recipe.values["model"])
    if is_embedded(model):
        return
    folder = model_folder(model)
    if folder is None and not may_be_hub_id(model):
        found = f"no model folder '{model}'"
        allowed = "a folder with config.json, or owner/name"
        remedy = "correct the path (from the project's folder), or name a hub id"
        yield error("tell-model-missing", found, recipe.where("model"), remedy, allowed)
    if folder is None:
        return
    config = read_json(folder / "config.json", dict[str, Any], "get the model anew", foreign=True)
    if config is None:
        found = f"folder '{model}' holds no config.json, so it is no model"
        remedy = "name the folder that holds config.json"
        yield error("tell-model-missing", found, recipe.where("model"), remedy)


def check_targets(checked: Checked) -> Iterator[Finding]:
    """`target_modules` that the model does not have.

    Where its config.json does not tell its layers, ms-swift's table has some of them; then only
    names that models of other kinds have are known to be wrong.
    """
    settings = checked.settings
    model, table = settings.text("model"), settings.keys.models
    shape, known = shape_of(model), table.known(model)
    kind = settings.text("model_type") or (known[0] if known else "")
    owner, own = f"type '{kind}'", table.types.get(kind, {}).get("layers") or []
    elsewhere = {layer for entry in table.types.values() for layer in entry["layers"]}
    if shape is not None:
        owner, own = shape.name, list(shape.modules)
    if settings.given("target_regex") or not own:
        return
    for name in settings.names("target_modules"):
        last = name.rpartition(".")[2]
        if last in (*own, *_OF_ANY_MODEL) or (shape is None and last not in elsewhere):
            continue
        match = nearest(name, own)
        found = f"'target_modules' names '{name}', and {owner} has no such layers"
        allowed = ", ".join([*own, "all-linear"])
        remedy = f"did you mean '{match}'?" if match else "write 'target_modules: [all-linear]'"
        yield error("tell-targets", found, checked.recipe.where("target_modules"), remedy, allowed)


def check_near_misses(checked: Checked) -> Iterator[Finding]:
    """Settings that work, but hardly as meant."""
    recipe, settings = checked.recipe, checked.settings
    if settings.text("save_strategy") == "no":
        found = "'save_strategy' is no, so no adapter is kept"
        remedy = "write 'save_strategy: \"epoch\"'"
        yield warning("tell-no-save", found, recipe.where("save_strategy"), remedy)
    yield from _check_folder(recipe, settings)


def check_resumed(checked: Checked) -> Iterator[Finding]:
    """A checkpoint to resume from that is not there, where ms-swift has a traceback."""
    recipe, settings = checked.recipe, checked.settings
    named = settings.text("resume_from_checkpoint")
    if named and not (paths.PROJECT / paths.expanded(named) / "trainer_state.json").is_file():
        yield error(
            "tell-checkpoint",
            f"no checkpoint '{named}'",
            recipe.where("resume_from_checkpoint"),
            "name one of the run's checkpoint-N folders",
            "a folder with trainer_state.json; in a recipe, from the project's folder",
        )


def _check_folder(recipe: Recipe, settings: Settings) -> Iterator[Finding]:
    if not settings.given("output_dir"):
        found = (
            "no 'output_dir': `swift sft` by itself writes to a folder named after the model, not "
            f"to {paths.shown(recipe.output_dir)}, where `./run.sh train` writes and `eval` looks"
        )
        remedy = f"write 'output_dir: output/{recipe.name}'"
        yield warning("tell-output-dir", found, recipe.where(), remedy)
    if settings.flag("add_version") or settings.given("resume_from_checkpoint"):
        return
    if any(recipe.output_dir.glob("checkpoint-*")) or any(recipe.output_dir.glob("logging.jsonl")):
        found = (
            f"'add_version' is false and {paths.shown(recipe.output_dir)} already holds a run: "
            "the two would mix"
        )
        remedy = "write 'add_version: true', or name another output_dir"
        yield warning("tell-output-mixed", found, recipe.where("add_version"), remedy)


def check_kind(checked: Checked) -> Iterator[Finding]:
    """`model_type` against the model, and whether ms-swift can tell the type without it."""
    recipe, settings = checked.recipe, checked.settings
    table = settings.keys.models
    model, given = settings.text("model"), settings.text("model_type")
    if _registers_more(recipe) or not table.types or not model or is_embedded(model):
        return
    if given and given not in table.types:
        yield _not_in_table("tell-model-type", "model_type", given, table.types, checked)
        return
    architecture = _architecture(settings)
    folder = model_folder(model)
    if given:
        fitting = table.types[given]["architectures"]
        if architecture and fitting and architecture not in fitting:
            yield error(
                "tell-model-type",
                f"'model_type' is '{given}' ({', '.join(fitting)}), but model '{model}' is "
                f"{architecture}",
                recipe.where("model_type" if "model_type" not in recipe.flags else "model"),
                f"write 'model_type: {_first(table.types_of(architecture))}', or remove it "
                "(with --model, the recipe's model_type and template need flags too)",
            )
    elif folder and not table.known(model) and not (folder / "args.json").is_file():
        yield from _untold(recipe, settings, folder, architecture)


def _not_in_table(
    rule: str, key: str, given: str, names: Iterable[str], checked: Checked
) -> Finding:
    match = nearest(given, names)
    return error(
        rule,
        f"'{key}' is '{given}', which ms-swift {checked.settings.keys.version} does not know",
        checked.recipe.where(key),
        f"did you mean '{match}'?" if match else "remove it, or use a name of ms-swift's table",
    )


def _untold(
    recipe: Recipe, settings: Settings, folder: Path, architecture: str | None
) -> Iterator[Finding]:
    """A folder whose name says nothing to ms-swift: its architecture must say one type."""
    kinds = settings.keys.models.types_of(architecture)
    if len(kinds) == 1 or not (folder / "config.json").is_file():
        return
    found = f"ms-swift cannot tell the type of the model in '{settings.text('model')}': "
    if kinds:
        found += f"{architecture or 'a config.json without architectures'} may be several"
    else:
        found += f"its table has no {architecture}"
    tell = error if kinds else warning  # without a type it goes on, without a chat template
    yield tell(
        "tell-model-type",
        found,
        recipe.where("model"),
        "name one as 'model_type', and its template as 'template'",
        ", ".join(kinds[:12]) or None,
    )


def check_template(checked: Checked) -> Iterator[Finding]:
    """`template` against ms-swift's table and against the model's own."""
    recipe, settings = checked.recipe, checked.settings
    table = settings.keys.models
    model, given = settings.text("model"), settings.text("template")
    if _registers_more(recipe) or not table.types or not model:
        return
    if given and given not in table.templates:
        yield _not_in_table("tell-template", "template", given, table.templates, checked)
        return
    known = table.known(model)
    if given and known and known[1] and given != known[1]:
        found = f"'template' is '{given}', but ms-swift's table has '{known[1]}' for '{model}'"
        remedy = f"write 'template: {known[1]}', or remove it"
        yield warning("tell-template", found, recipe.where("template"), remedy)
    kind = settings.text("model_type")
    if given or known or kind not in table.types or is_embedded(model):
        return
    several = table.types[kind]["templates"]
    if table.types[kind]["template"] is None and len(several) != 1:
        found = (
            f"models of type '{kind}' have several chat templates, and ms-swift cannot tell that "
            f"of '{model}'"
        )
        allowed = ", ".join(several)
        remedy = "name one as 'template'"
        yield error("tell-template", found, recipe.where("model_type"), remedy, allowed)


def check_cpu(checked: Checked) -> Iterator[Finding]:
    """A model too large for `use_cpu`."""
    recipe, settings = checked.recipe, checked.settings
    model = settings.text("model")
    parameters = parameters_of(model) or 0
    if settings.flag("use_cpu") and parameters > _SLOW:
        found = f"'use_cpu' is true, and '{model}' has {parameters / 1e9:.1f}e9 parameters"
        allowed = f"up to about {_SLOW / 1e9:.0f}e9 parameters on a CPU"
        remedy = "a GPU and 'use_cpu: false', or a smaller model"
        yield warning("tell-model-cpu", found, recipe.where("use_cpu"), remedy, allowed)


def check_positions(checked: Checked) -> Iterator[Finding]:
    """A `max_length` beyond what the model was trained for."""
    recipe, settings = checked.recipe, checked.settings
    shape = shape_of(settings.text("model"))
    limit = settings.number("max_length")
    if shape is None or not shape.positions or settings.given("rope_scaling"):
        return
    if limit > shape.positions:
        yield warning(
            "tell-positions",
            f"'max_length' is {limit:,.0f}, beyond the {shape.positions:,} positions that "
            f"{shape.name} was trained for",
            recipe.where("max_length"),
            f"write 'max_length: {shape.positions}', name rope_scaling, or take a model with a "
            "longer context",
        )


def _registers_more(recipe: Recipe) -> bool:
    """Whether another plugin may bring models and templates of its own."""
    return len(as_list(recipe.get("external_plugins"))) > 1


def _architecture(settings: Settings) -> str | None:
    """What a folder's config.json says, else what ms-swift knows of the name."""
    model, table = settings.text("model"), settings.keys.models
    folder, known = model_folder(model), table.known(model)
    if folder is not None and (folder / "config.json").is_file():
        config = cached_json(folder / "config.json", _Config, foreign=True) or {}
        return _first(config.get("architectures"))
    return _first(table.types[known[0]]["architectures"]) if known else None


def _first(names: Sequence[str] | None) -> str | None:
    return names[0] if names else None


RULES = (
    check_model,
    check_kind,
    check_template,
    check_targets,
    check_cpu,
    check_positions,
    check_near_misses,
    check_resumed,
)
