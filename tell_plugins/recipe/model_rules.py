"""Rules on the model: what ms-swift's own tables say of it against what the recipe says.

ms-swift knows a model by the last part of its name, else by the architecture in its config.json.
What neither tells, here or there, is not judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tell_plugins.core.errors import nearest
from tell_plugins.recipe.findings import Finding, error, warning
from tell_plugins.recipe.models import is_embedded, model_folder
from tell_plugins.recipe.recipes import Recipe, as_list
from tell_plugins.recipe.settings import Settings
from tell_plugins.recipe.shapes import readable_shape

_SLOW = 2e9  # parameters; beyond, a step on a CPU takes minutes


def check_kind(recipe: Recipe, settings: Settings) -> Iterator[Finding]:
    """`model_type` against the model, and whether ms-swift can tell the type without it."""
    table = settings.keys.models
    model, given = settings.text("model"), settings.text("model_type")
    if _registers_more(recipe) or not table.types or not model or is_embedded(model):
        return
    if given and given not in table.types:
        match = nearest(given, table.types)
        yield error(
            "tell-model-type",
            f"'model_type' is '{given}', which ms-swift {settings.keys.version} does not know",
            recipe.where("model_type"),
            f"did you mean '{match}'?" if match else "remove it, or use a name of ms-swift's table",
        )
        return
    architecture = _architecture(settings)
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
        return
    folder = model_folder(model)
    if folder is None or table.known(model) or (folder / "args.json").is_file():
        return
    yield from _untold(recipe, settings, folder, architecture)


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


def check_template(recipe: Recipe, settings: Settings) -> Iterator[Finding]:
    """`template` against ms-swift's table and against the model's own."""
    table = settings.keys.models
    model, given = settings.text("model"), settings.text("template")
    if _registers_more(recipe) or not table.types or not model:
        return
    if given and given not in table.templates:
        match = nearest(given, table.templates)
        yield error(
            "tell-template",
            f"'template' is '{given}', which ms-swift {settings.keys.version} does not know",
            recipe.where("template"),
            f"did you mean '{match}'?" if match else "remove it, or use a name of ms-swift's table",
        )
        return
    known = table.known(model)
    if given and known and known[1] and given != known[1]:
        yield warning(
            "tell-template",
            f"'template' is '{given}', but ms-swift's table has '{known[1]}' for '{model}'",
            recipe.where("template"),
            f"write 'template: {known[1]}', or remove it",
        )
    kind = settings.text("model_type")
    if given or known or kind not in table.types or is_embedded(model):
        return
    several = table.types[kind]["templates"]
    if table.types[kind]["template"] is None and len(several) != 1:
        yield error(
            "tell-template",
            f"models of type '{kind}' have several chat templates, and ms-swift cannot tell that "
            f"of '{model}'",
            recipe.where("model_type"),
            "name one as 'template'",
            ", ".join(several),
        )


def foreign_layers(recipe: Recipe, settings: Settings, names: Sequence[str]) -> Iterator[Finding]:
    """Layers that models of other kinds have and this one has not, by ms-swift's table."""
    table = settings.keys.models
    known = table.known(settings.text("model"))
    kind = settings.text("model_type") or (known[0] if known else "")
    own = table.types.get(kind, {}).get("layers") or []
    others = {layer for entry in table.types.values() for layer in entry["layers"]} - set(own)
    for name in names:
        if own and name.rpartition(".")[2] in others:
            yield error(
                "tell-targets",
                f"'target_modules' names '{name}', which models of type '{kind}' do not have",
                recipe.where("target_modules"),
                "write 'target_modules: [all-linear]', or use one of the allowed names",
                ", ".join([*own, "all-linear"]),
            )


def check_cpu(recipe: Recipe, settings: Settings) -> Iterator[Finding]:
    """A model too large for `use_cpu`."""
    model = settings.text("model")
    shape = readable_shape(model)
    size = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)[bB](?![a-zA-Z])", model.rpartition("/")[2])
    parameters = shape.parameters if shape else float(size[1]) * 1e9 if size else 0.0
    if settings.flag("use_cpu") and parameters > _SLOW:
        yield warning(
            "tell-model-cpu",
            f"'use_cpu' is true, and '{model}' has {parameters / 1e9:.1f}e9 parameters",
            recipe.where("use_cpu"),
            "a GPU and 'use_cpu: false', or a smaller model",
            f"up to about {_SLOW / 1e9:.0f}e9 parameters on a CPU",
        )


def check_positions(recipe: Recipe, settings: Settings) -> Iterator[Finding]:
    """A `max_length` beyond what the model was trained for."""
    shape = readable_shape(settings.text("model"))
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
    folder = model_folder(model)
    if folder is not None and (folder / "config.json").is_file():
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            return str(config["architectures"][0])
        except (ValueError, LookupError, TypeError):  # a rule on the folder says what is wrong
            return None
    known = table.known(model)
    return _first(table.types[known[0]]["architectures"]) if known else None


def _first(names: Sequence[str]) -> str | None:
    return names[0] if names else None
