"""How an own task is trained: the settings that the evidence ranks best for that many rows.

The rule, in steps of 8 entries: about 240 task entries, 480 where the answer is JSON of several
fields, no row more than 16 times, evenly spread among general rows: 192, or 96 with fields, or two
for five task entries where that is more. General rows hold the base model by KL, with weight 3;
each row weighs the same in the loss. For 15 to 240 rows this makes about 54 steps, 72 with fields.
The evidence is of one small model, SmolLM2-135M (docs/experiments.md): weight and amount chosen on
validation rows, then tested at 15, 60 and 240 rows of BANKING77 and at 60 of SNIPS music, three
seeds: plain SFT's score, not told apart, at a tenth of its drift or less.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import find_file, open_split
from tell_plugins.core.spec import LOSS_TYPE, parse_spec
from tell_plugins.recipe.recipes import Recipe

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
