"""What lies beside an adapter, against what the recipe asks for: the adapter's own keys are used.

A training's flags (`--model`, `--template`, `--system`) stand in no recipe; ms-swift saves them in
`args.json`, peft the model in `adapter_config.json`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tell_plugins.bridge.protocol import MODEL_KEYS, system_text
from tell_plugins.core import draw
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError, raise_all
from tell_plugins.core.manifest import manifest_of
from tell_plugins.core.mixture import GENERAL, HELD_OUT, TASK, build_mixture
from tell_plugins.core.sources import TaskRows, open_task
from tell_plugins.core.spec import NONE, Spec
from tell_plugins.evaluation.adapters import Adapter, folder_sha256
from tell_plugins.evaluation.answers import Prompt
from tell_plugins.recipe.models import model_folder
from tell_plugins.recipe.recipes import Recipe, as_list

Resolve = Callable[[Mapping[str, Any]], Mapping[str, Any]]
# of this machine, or of how fast it answers
_NOT_COMPARED = {
    *("torch_dtype", "device_map", "use_hf", "attn_impl", "external_plugins", "model_kwargs"),
    *("max_model_len", "rope_scaling"),  # ms-swift saves what it made of them
}
_KEYS = [key for key in MODEL_KEYS if key not in _NOT_COMPARED and not key.startswith("bnb_")]
_OF_THE_MODEL = ("model_type", "template")  # what ms-swift finds out where nothing says it
_DEFAULTS = {"use_chat_template": True, "template_backend": "swift", "new_special_tokens": []}


def as_trained(
    recipe: Recipe, adapters: Sequence[Adapter], resolve: Resolve | None
) -> tuple[Recipe, list[str]]:
    """The recipe with the model keys that the adapters were trained with, and what that changed.

    A flag of this command wins over both. `resolve` gives the model type and template that ms-swift
    takes for given values; None where a server answers. Raises UserError where two adapters were
    trained with different keys, since all are answered alike.
    """
    notes, problems = [], []
    taken: dict[str, tuple[Adapter, Any]] = {}
    changed = {}
    for adapter in adapters:
        for key, value in _trained(adapter, recipe, resolve).items():
            here, said = recipe.get(key), f"{adapter.label}: trained with {key} {_shown(value)}"
            first, before = taken.setdefault(key, (adapter, value))
            if first is not adapter and key not in recipe.flags:
                if not _same(key, before, value):
                    problems.append(
                        UserError(
                            f"{first.label} was trained with {key} {_shown(before)}, "
                            f"{adapter.label} with {_shown(value)}",
                            where="--adapter",
                            allowed="adapters that are answered with the same model, template and "
                            "system prompt",
                            remedy=f"call eval for each, or name one for both: --{key} VALUE",
                        )
                    )
            elif _same(key, here, value):
                continue
            elif key in recipe.flags:
                notes.append(f"{said}, tested with --{key} {_shown(here)}")
            else:
                changed[key] = value
                notes.append(f"{said}, which is used here; the recipe says {_shown(here)}")
    raise_all(problems)
    return recipe.with_values(**changed), notes


def found_by_swift(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model type and template that ms-swift takes for these keys; nothing where it cannot."""
    from tell_plugins.bridge.engine import model_arguments

    try:
        found = model_arguments(values)
    except (ValueError, AssertionError, OSError):  # then an adapter's own keys say what is missing
        return {}
    return {"model_type": found.model_type, "template": found.template}


def _trained(adapter: Adapter, recipe: Recipe, resolve: Resolve | None) -> dict[str, Any]:
    """The keys that an adapter was trained with, as far as its folder says.

    Model type and template count where the recipe names them, or where it leaves them to ms-swift
    and that took others in training.
    """
    found = {key: adapter.args[key] for key in _KEYS if key in adapter.args}
    left_open = [key for key in _OF_THE_MODEL if recipe.get(key) is None and key in found]
    if left_open:
        own = {"model": adapter.args["model"]} if adapter.args.get("model") else {}
        now = resolve(recipe.values | own) if resolve is not None else found
        for key in left_open:
            if not found[key] or now.get(key) == found[key]:
                del found[key]
    found.pop("model", None)
    if adapter.model and not adapter.whole and _usable(adapter.model, recipe, adapter):
        found["model"] = adapter.model
    return found


def _usable(model: str, recipe: Recipe, adapter: Adapter) -> bool:
    """Whether the model that was trained on is to be used: not where its folder is gone.

    Raises UserError where the recipe's is gone as well.
    """
    here = [name for name in (model, str(recipe.get("model", ""))) if not _gone(name)]
    if not here:
        raise UserError(
            f"trained on the model '{model}', which is gone, and so is the recipe's "
            f"'{recipe.get('model')}'",
            where=f"adapter {adapter.shown}",
            remedy="--model DIR with the folder of that model",
        )
    return here[0] == model


def _gone(model: str) -> bool:
    return os.path.isabs(model) and model_folder(model) is None


def _same(key: str, one: Any, other: Any) -> bool:
    """Whether two values of a key are the same to ms-swift."""
    if key == "model":
        return _same_model(str(one), str(other))
    one, other = _plain(key, one), _plain(key, other)
    return one == other or (key != "system" and not one and not other)


def _plain(key: str, value: Any) -> Any:
    if key == "system":
        return system_text(value)
    if value is None:
        return _DEFAULTS.get(key)
    if key == "new_special_tokens":
        return as_list(value)
    return value.replace("\\n", "\n") if key == "response_prefix" else value


def _same_model(one: str, other: str) -> bool:
    mine, theirs = model_folder(one), model_folder(other)
    if mine is not None and theirs is not None:
        return folder_sha256(mine) == folder_sha256(theirs)
    # a hub's id and the folder into which it was downloaded have the last part in common
    names = {Path(text).name.casefold().replace("___", ".") for text in (one, other)}
    return len(names) == 1


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def rows_trained_on(
    adapters: Sequence[Adapter], task: TaskRows, prompts: Sequence[Prompt]
) -> list[str]:
    """What is to be said of rows asked that an adapter was trained on.

    Raises UserError where the rows are of a held-out split: their scores would be none.
    """
    notes, problems = [], []
    asked = task.query_keys[[prompt.row for prompt in prompts]]
    for adapter in adapters:
        if adapter.spec is None:
            continue
        card, (keys, doubt) = adapter.spec.card, _trained_keys(adapter.spec, adapter.manifest)
        found = int(np.isin(asked, keys).sum())
        said = f"{found} of the {len(asked)} rows asked are among the rows that it was trained on"
        other = f"trained on '{card}', tested on '{task.card.name}'"
        told = [other if card != task.card.name else "", doubt, said if found else ""]
        notes += [f"{adapter.label}: {note}" for note in told if note]
        if found and task.split in HELD_OUT:
            problems.append(
                UserError(
                    said,
                    where=f"adapter {adapter.shown}, split '{task.split}' of '{task.card.name}'",
                    remedy="remove them from the split's file, or train without them",
                )
            )
    raise_all(problems)
    return notes


def _trained_keys(spec: Spec, manifest: Mapping[str, Any]) -> tuple[Any, str]:
    """Comparison keys of the task rows that a run drew, and why they may be others, "" if not."""
    none = np.zeros(0, "<u8")
    if spec.task == NONE:
        return none, ""
    try:
        task = open_task(load_card(spec.card), spec.split, spec.anchor)
    except UserError:
        return none, "its training rows cannot be read any more"
    ranked = draw.ranking(task.ids, seed=spec.seed, source=task.card.name)
    for source in manifest.get("sources", []):
        if source["role"] == TASK:
            same = source["file_sha256"] == task.sha256
            doubt = "" if same else "its training file has changed since it was trained"
            return task.query_keys[ranked[: source["rows"]["used"]]], doubt
    return task.query_keys, ""  # an earlier release does not say which of them


def other_anchors(adapters: Sequence[Adapter], task: TaskRows) -> Iterator[UserError]:
    """Adapters that trained with another anchor than the test would have.

    Where the rows carry the anchor themselves, its end is found from the rows of a split and may
    differ by a word; there the choice alone is compared.
    """
    for adapter in adapters:
        trained, mine = adapter.manifest.get("anchor"), task.anchor
        if trained is None or adapter.manifest.get("card") != task.card.name:
            continue  # it saw no task row, or another task's
        inline = mine.name == "card" and task.card.inline_anchor
        same_text = inline or trained["sha256"] == mine.sha256
        if trained["choice"] != mine.name or not same_text:
            yield UserError(
                f"trained with anchor '{trained['choice']}', to be tested with "
                f"'{mine.name}', whose text is another",
                where=f"adapter {adapter.shown}",
                remedy=f"--anchor {trained['choice']} for the same one (or its text of then), "
                f"--anchor {mine.name} to test with another on purpose",
            )


def unknown_rows(adapters: Sequence[Adapter]) -> Iterator[UserError]:
    """Adapters of which cannot be told any more which general rows they saw.

    A manifest has the dataset string, from which they are drawn anew; a card or file that has
    changed since gives others.
    """
    for adapter in adapters:
        if adapter.spec is None or "sources" not in adapter.manifest:  # of an earlier release
            continue
        now = manifest_of(build_mixture(adapter.spec))
        if _general_sources(now) != _general_sources(adapter.manifest):
            yield UserError(
                "its general data or their card have changed since it was trained, so which "
                "rows it did not see is not known",
                where=f"adapter {adapter.shown}",
                remedy="--general-rows 0, or give the general card a split 'heldout'",
            )


def _general_sources(manifest: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    return [
        (source["card"], source["file_sha256"], source["rows"]["used"])
        for source in manifest["sources"]
        if source["role"] == GENERAL
    ]
