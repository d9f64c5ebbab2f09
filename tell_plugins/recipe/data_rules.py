"""Rules on a recipe's data: the dataset string, the files it needs, the order that must survive."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tell_plugins.bridge import mixed_use
from tell_plugins.core import paths
from tell_plugins.core.anchors import RESERVED, anchor_files
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import Problems, UserError, raise_all, unknown
from tell_plugins.core.mixture import (
    GENERAL,
    HELD_OUT,
    counter_for,
    general_card,
    refuse_measuring,
    refuse_times_nothing,
)
from tell_plugins.core.row_files import FORMATS
from tell_plugins.core.schemas import card_validator
from tell_plugins.core.sources import need_file
from tell_plugins.core.spec import NONE, PREFIX, Spec, is_tell, parse_spec
from tell_plugins.recipe.checked import Checked, Finding, as_errors, error, warning
from tell_plugins.recipe.recipes import Recipe, as_list


def check_dataset(checked: Checked) -> None:
    """The dataset string is good, and known from here on."""
    checked.spec = read_dataset(checked.recipe)


def read_dataset(recipe: Recipe) -> Spec:
    """The parsed dataset string. Raises UserError with everything that is wrong with it."""
    text, where = recipe.dataset_text, recipe.where("dataset")
    problems = Problems()
    spec = card = None
    with problems:
        spec = parse_spec(text, where=where)
    name = text.split("::", 1)[-1][len(PREFIX) :].partition("#")[0].partition(":")[0]
    with problems:
        card = load_card(name) if re.fullmatch(r"[\w.-]+", name) else None
    if spec is not None and card is not None:
        _add_misfits(problems, spec, card, f"{where} '{text}'")
    raise_all(problems)
    assert spec is not None  # no error, so it was parsed
    return spec


def _add_misfits(problems: Problems, spec: Spec, card: Card, where: str) -> None:
    """Add what the string asks of the card and the card does not have."""
    place = f"{where}, key 'split'"
    problems += [
        unknown("split", n, card.splits, place) for n in spec.splits if n not in card.splits
    ]
    with problems:
        mixed_use.refuse_held_out(spec, place)
    if card.kind == GENERAL:
        with problems:
            refuse_measuring(card, where)
        return
    with problems:
        refuse_times_nothing(spec, spec.general_of(card)[0], where=where)
    anchors = [*RESERVED, *anchor_files(card)]
    if spec.anchor not in anchors:
        problems.append(unknown("value", spec.anchor, anchors, f"{where}, key 'anchor'"))
    for name in spec.sources or ():
        with problems:
            general_card(name, f"{where}, key 'from'")


def check_schema(checked: Checked) -> None:
    """The answer schema can be applied: before anything is built, trained or asked by it."""
    if checked.spec is not None:
        card_validator(load_card(checked.spec.card))


def check_patterns(checked: Checked) -> None:
    """The patterns of the answer schema are done with each answer of the training rows in time."""
    task = checked.mixture.task if checked.mixture is not None else None
    if task is not None and not checked.found("tell-answer-schema"):
        try_patterns(task.card, task.responses)


def try_patterns(card: Card, responses: Sequence[str]) -> None:
    """Raise UserError for a pattern of the answer schema that takes too long on an answer."""
    validator = card_validator(card)
    if validator is None:
        return
    for response in responses:
        with contextlib.suppress(ValueError, RecursionError):  # no JSON: others tell that
            list(validator.iter_errors(json.loads(response)))


def check_files(checked: Checked) -> None:
    """The files of the mixture are on this machine; each error names the command that gets one."""
    spec = checked.spec
    if spec is None:
        return
    card = load_card(spec.card)
    amount, names = spec.general_of(card)
    sources = [load_card(name) for name in names]
    wanted = card.kind == GENERAL or spec.task != NONE
    needed = [(card, name) for name in spec.splits] if wanted else []
    if card.kind != GENERAL and spec.overlap == "drop":
        needed += [(card, name) for name in HELD_OUT if name in card.splits]
    problems = Problems()
    for owner, name in (*needed, *((source, "train") for source in sources)):
        with problems:
            need_file(owner, name)
    with problems:
        counter_for(spec, [spec.task, amount], [card, *sources])
    raise_all(problems)


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
