"""The recipe of an own task: its settings, and its text, made from a recipe for the same model.

The rule for settings, in steps of 8 entries: about 240 task entries, 480 where the answer is JSON
of several fields, no row more than 16 times, evenly spread among general rows: 192, or 96 with
fields, or two for five task entries where that is more. General rows hold the base model by KL,
with weight 3; each row weighs the same in the loss. For 15 to 240 rows this makes about 54 steps,
72 with fields. The evidence is of one small model, SmolLM2-135M (docs/experiments.md): weight and
amount chosen on validation rows, then tested at 15, 60 and 240 rows of BANKING77 and at 60 of SNIPS
music, three seeds: plain SFT's score, not told apart, at a tenth of its drift or less.

Of a model that no recipe here trains (`new --model Qwen/Qwen3-4B`, or a folder), ms-swift finds
type and chat template by the name or by the architecture in config.json; what it cannot tell has to
be named.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError, nearest, raise_all
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import find_file, open_split
from tell_plugins.core.spec import LOSS_TYPE, NONE, parse_spec
from tell_plugins.recipe.models import model_folder, parameters_of
from tell_plugins.recipe.recipes import Recipe, load_recipe
from tell_plugins.recipe.settings_rules import check_kind, check_template
from tell_plugins.recipe.swift_keys import swift_keys

METHODS = {  # and the recipes that are written of each
    "hold": ("hold", "sft"),
    "mix": ("mix", "sft"),
    "paper": ("paper",),
    "sft": ("sft",),
}
TASK_ENTRIES, MOST_REPEAT = 240, 16
FIELD_ENTRIES = 480  # of answers with several fields, which take longer to learn than a label
GENERAL_ROWS, FIELD_GENERAL_ROWS = 192, 96  # at least
GENERAL_SHARE = 0.4  # rows for each task entry
KL = 3
DEFAULT = "hold"
STEP = 8  # entries an optimizer step
_READINGS = "in tests of one small model; see docs/experiments.md"
_WHAT = {  # general rows do, and what is known of that
    "hold": ("hold the base by KL", f"Of all methods the best {_READINGS}."),
    "mix": ("teach as well", f"It drifts further from the base than 'hold' {_READINGS}."),
}
PATTERN = "llama2_json"  # its settings for a 24 GB card are those of any model of its size
_DATA = "tell/sample_complaints"  # and its general data are those that come along
_WITHOUT_THINKING = (
    "; answers without a think block (enable_thinking: false), as your rows have none: ms-swift "
    "4.0 would let it think in answers, 4.6 not, and both train it on an empty block"
)
_SMALL, _LARGE = 0.6e9, 3e9  # parameters
# learning rates by size. The paper's for 7B; of SmolLM2-135M's readings, a fourth; between them
# by eye. None was measured at its size
_RATES = ((_SMALL, 1.0e-3), (_LARGE, 4.0e-4), (float("inf"), 1.0e-4))
_OF_ANY_MODEL = "--model"  # where such a pattern has its model from
# keys of a recipe that belong to its own task
GONE = ("val_dataset", "split_dataset_ratio", "resume_from_checkpoint")
# tasks of the recipes that come along: `new` and people put theirs beside them
_TASKS = ("sample", "json", "is_en", "en_is", "gsm8k")
# a key at the margin, the rest of its line, and the lines of its value below
_KEY = re.compile(r"^[\"']?(\w+)[\"']?[ \t]*:(.*)\n(?:[ \t-].*\n)*", re.MULTILINE)
_COMMENT = re.compile(r"[ \t]+#[^\"']*$")


class Method(NamedTuple):
    """One recipe to write.

    Attributes:
        title: what it trains, for the header's first line.
        why: the comment in front of the data set.
        keys: the recipe's keys that are not the pattern's.
    """

    dataset: str
    title: str = ""
    why: Sequence[str] = ()
    keys: dict[str, Any] = {}  # noqa: RUF012


def repeat_of(rows: int, *, fields: bool = False) -> int:
    """How often each of `rows` task rows trains; `fields`: the answer is JSON without a label."""
    wanted = FIELD_ENTRIES if fields else TASK_ENTRIES
    return max(1, min(MOST_REPEAT, round(wanted / rows)))


def general_rows_for(rows: int, *, fields: bool = False) -> int:
    """How many general rows the base model is held on."""
    least = FIELD_GENERAL_ROWS if fields else GENERAL_ROWS
    return max(least, round(GENERAL_SHARE * rows * repeat_of(rows)))


def method_of(
    kind: str, task: str, rows: int, pattern: Recipe, *, repeat: int = 1, general: str | None = None
) -> Method:
    """A recipe of a `kind`: `paper` (each row once, among general rows that teach, in random
    order); `hold` or `mix` (rows repeated and evenly spread among general rows, which hold the base
    model or teach); `sft` (task rows alone). `general` is the amount of general rows, None the
    card's."""
    model = Path(str(pattern.get("model"))).name
    if kind == "paper":
        title = f"TELL on {model}: the task {task}, {rows} rows among general data."
        return Method(f"tell/{task}", title)
    accumulation = max(1, STEP // int(pattern.get("per_device_train_batch_size", 1)))
    steps = {"gradient_accumulation_steps": accumulation}
    keys = {key: value for key, value in steps.items() if pattern.get(key) != value}
    copies = [f"repeat={repeat}"] if repeat > 1 else []
    if kind == "sft":
        baseline = (
            f"The baseline: each of the {rows} rows {repeat}x, for the steps that a recipe",
            "with general rows takes, or a few more, which is named without _sft; no general rows.",
        )
        title = f"Plain SFT on {model}: {task}, {rows} rows, {repeat}x each, no general data."
        return Method(f"tell/{task}:{'/'.join(['general=0', *copies])}", title, baseline, keys)
    what, known = _WHAT[kind]
    parts = [f"general={general}"] if general else []
    parts += ["order=even", *copies, *([f"kl={KL}"] if kind == "hold" else [])]
    why = (
        f"Each of the {rows} rows trains {repeat}x, evenly spread; the general rows {what};",
        "each row weighs the same in the loss.",
        known,
        "Whether it beats plain SFT on this task and model, the _sft recipe beside it tells.",
    )
    title = f"TELL on {model}: {task}, {rows} rows, {repeat}x each; general rows {what}."
    return Method(f"tell/{task}:{'/'.join(parts)}", title, why, {"loss_type": LOSS_TYPE} | keys)


def settings_for(
    method: str, card: Card, rows: int, pattern: Recipe, says_amount: bool
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """`repeat` and `general` of `method_of` for each recipe of a method, proven by a mixture of
    `card` with so many rows; and the downloads that it needs first.

    `says_amount`: the recipe says how much general data it takes, not the card.
    """
    fields = card.metric == "json" and not (card.answer and card.answer.label)
    assert card.general is not None  # `new` wrote it
    wanted, repeat = general_rows_for(rows, fields=fields), repeat_of(rows, fields=fields)
    held = min(wanted, there(card.general.sources) or wanted)
    main: dict[str, Any] = {}
    if method != "paper":
        main = {"repeat": repeat, "general": f"{held}rows" if says_amount else None}
    total, missing = rows * repeat + wanted, list[str]()
    if method != "sft":
        dataset = method_of(method, card.name, rows, pattern, **main).dataset
        found, missing = _mixture(dataset, card)
        total = found or total
    return {method: main, "sft": {"repeat": math.ceil(total / rows)}}, missing


def there(names: Sequence[str]) -> int | None:
    """The general rows to be had, in equal parts; some may be dropped. None where unknown."""
    sizes = []
    for name in names:
        card = load_card(name)
        here = find_file(card, "train")
        sizes.append(len(open_split(card, "train")) if here else card.split("train").rows or 0)
    return int(0.95 * min(sizes) * len(names)) or None


def _mixture(dataset: str, card: Card) -> tuple[int, list[str]]:
    """The rows of the mixture that a recipe asks for, 0 where it needs downloads first, and these.

    Raises UserError when it cannot be built and no download would change that.
    """
    try:
        mixture = build_mixture(parse_spec(dataset), card)
    except UserError as error:
        downloads = re.findall(r"\./run\.sh data [\w.-]+", str(error))
        if not downloads:
            raise
        print(f"not ready to train yet: {error}")
        return 0, downloads
    parts = ", ".join(f"{len(part.used)} rows of {part.card.name}" for part in mixture.sources)
    print(f"mixture: {parts}")
    return len(mixture), []


# ------------------------------------------------------------------------- its pattern and text


def recipe_of(
    model: str, model_type: str | None, template: str | None, metric: str = ""
) -> tuple[Recipe, list[str]]:
    """A recipe of what the user calls a model, and what was assumed of it: a recipe file; one of
    `short_names`, then of a task with this metric where there is one; else see `any_model`.
    """
    assumed: list[str] = []
    if model.endswith((".yaml", ".yml")):
        recipe = load_recipe(model)
    elif found := _patterns(model):
        fitting = (it for it in found if load_card(it.spec.card).metric == metric)
        recipe = next(fitting, found[0])
    else:
        recipe, said = any_model(model, model_type, template)
        assumed = [said]
    named = {"model_type": model_type, "template": template}
    recipe = recipe.with_values(**{key: value for key, value in named.items() if value})
    if not recipe.get("model"):
        raise UserError("the recipe names no model", where=model, remedy="add 'model: ...'")
    return recipe, assumed


def short_names() -> list[str]:
    """What the pack's recipes call their models: the first part of a recipe's name."""
    return sorted({recipe.name.partition("_")[0] for recipe in _patterns()})


def _patterns(model: str = "*") -> list[Recipe]:
    """The pack's own recipes that train a task as the paper does, the least memory first.

    A recipe of the user's own beside them is a pattern only when it is named, since its settings
    were chosen for its own task; a variant (`qwen_json_sft`) is none either.
    """
    found = []
    for file in sorted(paths.RECIPES.glob("*_*.yaml"), reverse=True):
        name, _, task = file.stem.partition("_")
        if model in ("*", name) and task in _TASKS:
            with suppress(UserError):
                recipe = load_recipe(file)
                found += [recipe] if _is_plain(recipe) else []
    return sorted(found, key=lambda recipe: int(recipe.get("max_length", 0)))


def _is_plain(recipe: Recipe) -> bool:
    """Whether a recipe trains a task among general data with the card's anchor."""
    try:
        spec = recipe.spec
        is_task = load_card(spec.card).kind == "task"
    except UserError:
        return False
    return is_task and spec.general != NONE and (spec.anchor, spec.split) == ("card", "train")


def recipe_name(pattern: Recipe, task: str, kind: str) -> str:
    """What the recipe of a task is called, without ending."""
    stem = pattern.name.split("_")[0]
    if _is_of_any_model(pattern):
        stem = re.sub(r"[^a-z0-9.]+", "-", Path(str(pattern.get("model"))).name.lower())
    return f"{stem}_{task}{'_sft' if kind == 'sft' else ''}"


def _is_of_any_model(pattern: Recipe) -> bool:
    return pattern.where("model") == _OF_ANY_MODEL


def own_recipe(pattern: Recipe, file: Path, method: Method, export: str | None) -> str:
    """The text of a new task's recipe, which is to be written to `file`.

    `export` is the line by which a shell finds the card.
    """
    origin, shown = paths.shown(pattern.path), shlex.quote(paths.shown(file))
    needs = f"what {origin} needs, which this was made from"
    what = "task, method and output folder" if method.why else "task and output folder"
    if _is_of_any_model(pattern):
        needs = "what `check` estimates; not measured"
        what = f"model, layers, learning rate, {what}"
    header = [
        method.title,
        f"Launch:  ./run.sh train {shown}",
        f"Needs:   {needs}",
        f"First:   {f'{export}; ' if export else ''}./run.sh check {shown}",
        "Result:  not measured",
        f"Differs: from {origin} in {what};",
        "         amounts and validation of that recipe's own task are left out",
    ]
    return recipe_text(pattern, file.stem, method, header)


def recipe_text(
    pattern: Recipe,
    name: str,
    method: Method,
    header: Sequence[str],
    gone: Sequence[str] = GONE,
) -> str:
    """The pattern's text with another header, output folder, dataset string and method's keys.

    All else stays as it is, comments included, but for the keys `gone`: by default those of the
    pattern's own task, its validation set among them.
    Raises UserError for a pattern that is written so that its keys cannot be told apart.
    """
    text = pattern.path.read_text(encoding="utf-8-sig").rstrip("\n") + "\n"
    written = yaml.safe_load(text)
    new = {key: value for key, value in pattern.values.items() if written.get(key) != value}
    new |= {"dataset": [method.dataset], "output_dir": f"output/{name}", **method.keys}
    fresh = {key: _line(key, value) for key, value in new.items() if key not in written}
    front = [f"# {line}\n" for line in method.why]
    front += [fresh.pop(key) for key in method.keys if key in fresh]

    def rewritten(found: re.Match[str]) -> str:
        key, block = found[1], found[0]
        if key in gone:
            return ""
        if key in new:
            comment = _COMMENT.search(found[2])
            block = _line(key, new[key], comment[0] if comment else "")
        return "".join([*front, block]) if key == "dataset" else block

    body = _KEY.sub(rewritten, re.sub(r"\A(?:#.*\n)*\n*", "", text)) + "".join(fresh.values())
    kept = {key: value for key, value in written.items() if key not in gone}
    with suppress(yaml.YAMLError):
        if yaml.safe_load(body) == {**kept, **new}:
            return "".join(f"# {line}\n" for line in header) + "\n" + body
    raise UserError(
        "another dataset cannot be written into this recipe as it stands",
        where=paths.shown(pattern.path),
        allowed="one 'key: value' a line at the left margin, without braces or references",
        remedy="write it so, or name another recipe with --model",
    )


def _line(key: str, value: object, comment: str = "") -> str:
    """A key and its value in one line as YAML reads it back: 1e-05 has no point and is text."""
    style = '"' if key == "system" else None
    text = yaml.safe_dump(
        value, default_flow_style=True, default_style=style, allow_unicode=True, width=10**9
    )
    if key == "dataset":
        text = f'["{value[0]}"]' if isinstance(value, list) else text
    return f"{key}: {text.removesuffix('...' + chr(10)).rstrip()}{comment}\n"


def any_model(model: str, model_type: str | None, template: str | None) -> tuple[Recipe, str]:
    """A recipe to start from for a model that no recipe here trains, and what was assumed of it.

    Raises UserError where neither ms-swift nor the folder tells what model it is, and MachineError
    where ms-swift cannot be asked.
    """
    folder, table = model_folder(model), swift_keys().models
    known = table.known(model)
    if folder is None and known is None and model_type is None:
        close = nearest(model.rpartition("/")[2].lower(), [*short_names(), *table.names])
        raise UserError(
            f"no folder '{model}', and no model of that name in ms-swift's table",
            where="--model",
            allowed=f"{', '.join(short_names())}; a recipe file; a folder with a model; an id that "
            "ms-swift knows, such as Qwen/Qwen3-4B",
            remedy=(f"did you mean '{close}'? Or " if close else "")
            + "say what it is: --model-type TYPE --template NAME",
        )
    size, is_hybrid = parameters_of(model), (template or (known and known[1])) in table.hybrid
    values: dict[str, Any] = {
        "model": str(folder) if folder is not None else model,
        "model_type": model_type,
        "template": template,
        "dataset": [_DATA],
        "target_modules": ["all-linear"],
        "learning_rate": next(rate for most, rate in _RATES if (size or _LARGE) < most),
        "gradient_checkpointing": size is None or size > _SMALL,
    }
    if is_hybrid:
        values["enable_thinking"] = False
    recipe = load_recipe(paths.RECIPES / f"{PATTERN}.yaml").with_values(**values)
    recipe = recipe.placed({"model": _OF_ANY_MODEL})
    remedy = "name it: --model-type TYPE, and --template NAME where that has several"
    raise_all(
        [
            UserError(finding.found, where="--model", allowed=finding.allowed, remedy=remedy)
            for finding in (*check_kind(recipe), *check_template(recipe))
            if finding.severity == "error"
        ]
    )
    kind = model_type or (known[0] if known else "found by ms-swift in its config.json")
    told = f"{size / 1e9:.2g}B parameters" if size else "a size that its name does not tell"
    rate = f"learning rate {values['learning_rate']:g}, not measured for it"
    said = f"{model}: type {kind}, {told}; assumed: LoRA on all linear layers, {rate}"
    return recipe, said + (_WITHOUT_THINKING if is_hybrid else "")
