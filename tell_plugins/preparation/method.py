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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import find_file, open_split
from tell_plugins.core.spec import LOSS_TYPE, parse_spec
from tell_plugins.recipe.recipes import Recipe

METHODS = {  # and the variants that recipes are written of
    "hold": ("", "sft"),
    "mix": ("", "sft"),
    "paper": ("",),
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


@dataclass(frozen=True, eq=False)
class Method:
    """One recipe to write.

    Attributes:
        title: what it trains, for the header's first line.
        why: the comment in front of the data set.
        keys: the recipe's keys that are not the pattern's.
    """

    dataset: str
    title: str = ""
    why: tuple[str, ...] = ()
    keys: dict[str, Any] = field(default_factory=dict)


def repeat_of(rows: int, *, fields: bool = False) -> int:
    """How often each of `rows` task rows trains; `fields`: the answer is JSON without a label."""
    wanted = FIELD_ENTRIES if fields else TASK_ENTRIES
    return max(1, min(MOST_REPEAT, round(wanted / rows)))


def general_rows_for(rows: int, *, fields: bool = False) -> int:
    """How many general rows the base model is held on."""
    least = FIELD_GENERAL_ROWS if fields else GENERAL_ROWS
    return max(least, round(GENERAL_SHARE * rows * repeat_of(rows)))


def as_the_paper(task: str, rows: int, pattern: Recipe) -> Method:
    """The paper's: each row once, among general rows that teach, in random order."""
    title = f"TELL on {_model(pattern)}: the task {task}, {rows} rows among general data."
    return Method(f"tell/{task}", title)


def among(
    task: str, rows: int, pattern: Recipe, *, repeat: int, general: str | None, hold: bool
) -> Method:
    """Rows repeated and evenly spread among general rows, which hold the base model or teach.

    `general` is the amount of general rows, None the card's.
    """
    what, why = "teach as well", f"It drifts further from the base than 'hold' {_READINGS}."
    if hold:
        what, why = "hold the base by KL", f"Of all methods the best {_READINGS}."
    parts = [
        *([f"general={general}"] if general else []),
        "order=even",
        *([f"repeat={repeat}"] if repeat > 1 else []),
        *([f"kl={KL}"] if hold else []),
    ]
    each = f"{rows} rows, {repeat}x each; general rows {what}."
    return Method(
        f"tell/{task}:{'/'.join(parts)}",
        f"TELL on {_model(pattern)}: {task}, {each}",
        (
            f"Each of the {rows} rows trains {repeat}x, evenly spread; the general rows {what};",
            "each row weighs the same in the loss.",
            why,
            "Whether it beats plain SFT on this task and model, the _sft recipe beside it tells.",
        ),
        {"loss_type": LOSS_TYPE} | _steps_of_8(pattern),
    )


def plain_sft(task: str, rows: int, pattern: Recipe, *, repeat: int) -> Method:
    """The baseline: task rows alone, `repeat` times each."""
    key = f"/repeat={repeat}" if repeat > 1 else ""
    return Method(
        f"tell/{task}:general=0{key}",
        f"Plain SFT on {_model(pattern)}: {task}, {rows} rows, {repeat}x each, no general data.",
        (
            f"The baseline: each of the {rows} rows {repeat}x, for the steps that a recipe",
            "with general rows takes, or a few more, which is named without _sft; no general rows.",
        ),
        _steps_of_8(pattern),
    )


def _model(pattern: Recipe) -> str:
    return Path(str(pattern.get("model"))).name


def methods_for(
    name: str, card: Card, rows: int, pattern: Recipe, says_amount: bool
) -> tuple[list[Callable[[str, int], Method]], list[str]]:
    """The variants of a method, each made of a task's name and rows, proven by a mixture of `card`
    with so many rows; and the downloads that it needs first.

    `says_amount`: the recipe says how much general data it takes, not the card.
    """
    fields = card.metric == "json" and not (card.answer and card.answer.label)
    assert card.general is not None  # `new` wrote it
    wanted, repeat = general_rows_for(rows, fields=fields), repeat_of(rows, fields=fields)
    held = min(wanted, there(card.general.sources) or wanted)
    general = f"{held}rows" if says_amount else None
    main = partial(among, pattern=pattern, repeat=repeat, general=general, hold=name != "mix")
    if name == "paper":
        main = partial(as_the_paper, pattern=pattern)
    total: int | None = None
    missing: list[str] = []
    if name != "sft":
        total, missing = _mixture(main(card.name, rows).dataset, card)
    times = math.ceil((total or rows * repeat + wanted) / rows)
    sft = partial(plain_sft, pattern=pattern, repeat=times)
    return [sft if variant else main for variant in METHODS[name]], missing


def there(names: Sequence[str]) -> int | None:
    """The general rows to be had, in equal parts; some may be dropped. None where unknown."""
    sizes = []
    for name in names:
        card = load_card(name)
        here = find_file(card, "train")
        sizes.append(len(open_split(card, "train")) if here else card.split("train").rows or 0)
    return int(0.95 * min(sizes) * len(names)) or None


def _mixture(dataset: str, card: Card) -> tuple[int | None, list[str]]:
    """The rows of the mixture that the recipe asks for, or None and the downloads that it needs.

    Raises UserError when it cannot be built and no download would change that.
    """
    try:
        mixture = build_mixture(parse_spec(dataset), card)
    except UserError as error:
        downloads = re.findall(r"\./run\.sh data [\w.-]+", str(error))
        if not downloads:
            raise
        print(f"not ready to train yet: {error}")
        return None, downloads
    parts = ", ".join(f"{len(part.used)} rows of {part.card.name}" for part in mixture.sources)
    print(f"mixture: {parts}")
    return len(mixture), []


def _steps_of_8(pattern: Recipe) -> dict[str, Any]:
    """The key that makes a step of `STEP` entries, where the pattern's has another size."""
    batch = int(pattern.get("per_device_train_batch_size", 1))
    accumulation = max(1, STEP // batch)
    same = pattern.get("gradient_accumulation_steps") == accumulation
    return {} if same else {"gradient_accumulation_steps": accumulation}
