"""A recipe for an own task, made from one that is there for the same model."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError, unknown
from tell_plugins.core.spec import NONE
from tell_plugins.preparation.method import Method
from tell_plugins.recipe.recipes import Recipe, load_recipe

# keys of a recipe that belong to its own task
GONE = ("val_dataset", "split_dataset_ratio", "resume_from_checkpoint")


def pattern_for(model: str, metric: str) -> Recipe:
    """The recipe to start from: of this model, and of a task with this metric where there is one.

    `model` is one of `short_names`, or a recipe file; see `any_model` for all others.
    """
    if model.endswith((".yaml", ".yml")):
        recipe = load_recipe(model)
        if not _is_plain(recipe):
            raise UserError(
                "the recipe trains no task among general data with the card's anchor",
                where=recipe.where("dataset"),
                remedy="name another recipe, or a model with --model NAME",
            )
        return recipe
    if model not in short_names():
        raise unknown("model", model, short_names(), "--model")
    recipes = _patterns(model)
    return next((it for it in recipes if load_card(it.spec.card).metric == metric), recipes[0])


def short_names() -> list[str]:
    """What the pack's recipes call their models: the first part of a recipe's name."""
    return sorted({recipe.name.partition("_")[0] for recipe in _patterns()})


def _patterns(model: str = "") -> list[Recipe]:
    """The pack's own recipes that train a task as the paper does, the least memory first.

    A recipe of the user's own beside them is a pattern only when it is named, since its settings
    were chosen for its own task; a variant (`qwen_json_sft`) is none either.
    """
    files = sorted(paths.RECIPES.glob(f"{model or '*'}_*.yaml"), reverse=True)
    stems = [file.stem for file in files]
    mains = [f for f in files if not any(f.stem.startswith(f"{stem}_") for stem in stems)]
    found = [recipe for recipe in map(_readable, mains) if recipe is not None]
    return sorted(found, key=lambda recipe: int(recipe.get("max_length", 0)))


def _readable(file: Path) -> Recipe | None:
    """A recipe of the pack that is plain and trains one of its data sets, else nothing."""
    try:
        recipe = load_recipe(file)
        card = load_card(recipe.spec.card)
    except UserError:
        return None
    return recipe if card.folder.parent == paths.CARDS and _is_plain(recipe) else None


def _is_plain(recipe: Recipe) -> bool:
    """Whether a recipe trains a task among general data with the card's anchor."""
    try:
        spec = recipe.spec
        card = load_card(spec.card)
    except UserError:
        return False
    return (
        card.kind == "task"
        and spec.general != NONE
        and (spec.anchor, spec.split) == ("card", "train")
    )


def general_of(pattern: Recipe) -> tuple[tuple[str, ...], str]:
    """The general cards and the amount that a recipe's card mixes with."""
    card: Card = load_card(pattern.spec.card)
    assert card.general is not None  # a task card has it
    return pattern.spec.sources or card.general.sources, str(card.general.amount)


def recipe_name(pattern: Recipe, task: str, variant: str = "") -> str:
    model = Path(str(pattern.get("model"))).name
    own = "model" in _overrides(pattern)
    stem = re.sub(r"[^a-z0-9.]+", "-", model.lower()) if own else pattern.name.split("_")[0]
    name = f"{stem}_{task}"
    return f"{name}_{variant}" if variant else name


def _overrides(pattern: Recipe) -> dict[str, Any]:
    """The pattern's values that are not those of its file."""
    there = load_recipe(pattern.path).values
    return {key: value for key, value in pattern.values.items() if there.get(key) != value}


def recipe_text(
    pattern: Recipe,
    name: str,
    method: Method,
    header: list[str],
    system: str | None = None,
    gone: Sequence[str] = GONE,
) -> str:
    """The pattern's text with another header, output folder, dataset string and method's keys.

    A `system` is the rows' own system prompt.

    All else stays as it is, comments included, but for the keys `gone`: by default those of the
    pattern's own task, its validation set among them.
    Raises UserError for a pattern that is written so that its keys cannot be told apart.
    """
    text = pattern.path.read_text(encoding="utf-8-sig")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode)  # `load_recipe` checked it
    there = {key.value for key, _ in node.value}
    own = {key: value for key, value in _overrides(pattern).items() if key not in method.keys}
    own |= _placed(pattern, yaml.safe_load(text))
    new = own | {"dataset": [method.dataset], "output_dir": f"output/{name}", **method.keys}
    lines = {key: _written(value) for key, value in new.items() if key in there or key in own}
    lines |= {"dataset": f'["{method.dataset}"]', "output_dir": f"output/{name}"}
    front = "".join(f"# {line}\n" for line in method.why)
    front += "".join(
        f"{key}: {_written(value)}\n" for key, value in method.keys.items() if key not in there
    )
    if system is not None:
        new["system"] = system
        quoted = yaml.safe_dump(system, default_style='"', allow_unicode=True, width=10**9)
        lines["system"] = quoted.strip()
    body = text
    for key, value in reversed(node.value):
        start, end = key.start_mark.index, _end(value)
        if key.value in gone:
            rest = body[end:] if body[:end].endswith("\n") else body[end:].partition("\n")[2]
            body = body[:start] + rest
        elif key.value in lines:
            after = body[end:] if body[end:].startswith(("\n", " ")) else "\n" + body[end:]
            before = body[:start] + (front if key.value == "dataset" else "")
            body = f"{before}{key.value}: {lines.pop(key.value)}{after}"
    body = re.sub(r"\A(?:#.*\n)*\n*", "", body)
    for key, line in lines.items():
        body = body.rstrip("\n") + f"\n{key}: {line}\n"
    kept = {key: value for key, value in yaml.safe_load(text).items() if key not in gone}
    if _loaded(body) != {**kept, **new}:
        raise UserError(
            "another dataset cannot be written into this recipe as it stands",
            where=paths.shown(pattern.path),
            allowed="one 'key: value' a line at the left margin, without braces or references",
            remedy="write it so, or name another recipe with --model",
        )
    return "".join(f"# {line}\n" for line in header) + "\n" + body


def _placed(pattern: Recipe, written: dict[str, Any]) -> dict[str, Any]:
    """Plugin and model, where an installed package has them elsewhere than the pattern writes."""
    keys = ("external_plugins", "model")
    values = {key: pattern.values[key] for key in keys if key in written}
    return {key: value for key, value in values.items() if value != written[key]}


def _written(value: object) -> str:
    """A value in one line as YAML reads it back: 1e-05 has no point and would be text."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.partition("\n")[0]


def _end(node: yaml.Node) -> int:
    """Where a value ends; PyYAML lets a block of items end where the next key begins."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _loaded(text: str) -> object:
    """The values of a YAML text, None when it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def header(
    pattern: Recipe, task: str, method: Method, recipe: Path, exports: str | None
) -> list[str]:
    """The lines in front of a recipe: what, launch, needs, first, result, differs."""
    origin = paths.shown(pattern.path)
    shown = shlex.quote(paths.shown(recipe))
    lines = [
        method.title.format(model=Path(str(pattern.get("model"))).name, task=task),
        f"Launch:  ./run.sh train {shown}",
        "Needs:   what `check` estimates; not measured"
        if "model" in _overrides(pattern)
        else f"Needs:   what {origin} needs, which this was made from",
        f"First:   {f'{exports}; ' if exports else ''}./run.sh check {shown}",
        "Result:  not measured",
    ]
    left_out = _left_out(pattern)
    without = f", and without {', '.join(left_out)}, chosen for its own task" if left_out else ""
    what = "task, method and output folder" if method.why else "task and output folder"
    if "model" in _overrides(pattern):
        what = f"model, layers, learning rate, {what}"
    differs = f"Differs: from {origin} in {what}{without}; its header says more."
    return lines + textwrap.wrap(
        differs, 98, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False
    )


def _left_out(pattern: Recipe) -> list[str]:
    """What of the pattern's task and amounts has no place in another task's recipe."""
    amounts = str(pattern.spec.with_values(sources=None)).partition(":")[2]
    keys = [key for key in GONE if key in pattern.values]
    return [*amounts.split("/"), *keys] if amounts else keys
