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
from dataclasses import dataclass, field, replace
from typing import Any

from tell_plugins.core.spec import LOSS_TYPE
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
    """One recipe to write. Its texts may hold `{task}` and `{rows}`, see `of`.

    Attributes:
        title: what it trains, for the header's first line; may hold `{model}`.
        why: the comment in front of the data set.
        keys: the recipe's keys that are not the pattern's.
    """

    dataset: str
    title: str = ""
    why: tuple[str, ...] = ()
    keys: dict[str, Any] = field(default_factory=dict)

    def of(self, task: str, rows: int) -> Method:
        """The method for a task of so many rows."""
        dataset, title, *why = (
            text.replace("{task}", task).replace("{rows}", str(rows))
            for text in (self.dataset, self.title, *self.why)
        )
        return replace(self, dataset=dataset, title=title, why=tuple(why))


def repeat_of(rows: int, *, fields: bool = False) -> int:
    """How often each of `rows` task rows trains; `fields`: the answer is JSON without a label."""
    wanted = FIELD_ENTRIES if fields else TASK_ENTRIES
    return max(1, min(MOST_REPEAT, round(wanted / rows)))


def general_rows_for(rows: int, *, fields: bool = False) -> int:
    """How many general rows the base model is held on."""
    least = FIELD_GENERAL_ROWS if fields else GENERAL_ROWS
    return max(least, round(GENERAL_SHARE * rows * repeat_of(rows)))


def as_the_paper() -> Method:
    """The paper's: each row once, among general rows that teach, in random order."""
    title = "TELL on {model}: the task {task}, {rows} rows among general data."
    return Method("tell/{task}", title)


def among(repeat: int, general: str | None, pattern: Recipe, *, hold: bool) -> Method:
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
    return Method(
        f"tell/{{task}}:{'/'.join(parts)}",
        f"TELL on {{model}}: {{task}}, {{rows}} rows, {repeat}x each; general rows {what}.",
        (
            f"Each of the {{rows}} rows trains {repeat}x, evenly spread; the general rows {what};",
            "each row weighs the same in the loss.",
            why,
            "Whether it beats plain SFT on this task and model, the _sft recipe beside it tells.",
        ),
        {"loss_type": LOSS_TYPE} | _steps_of_8(pattern),
    )


def plain_sft(rows: int, entries: int, pattern: Recipe) -> Method:
    """The baseline: task rows alone, often enough for the `entries` of the recipe beside it."""
    repeat = math.ceil(entries / rows)
    key = f"/repeat={repeat}" if repeat > 1 else ""
    return Method(
        f"tell/{{task}}:general=0{key}",
        f"Plain SFT on {{model}}: {{task}}, {{rows}} rows, {repeat}x each, no general data.",
        (
            f"The baseline: each of the {{rows}} rows {repeat}x, for the steps that a recipe",
            "with general rows takes, or a few more, which is named without _sft; no general rows.",
        ),
        _steps_of_8(pattern),
    )


def _steps_of_8(pattern: Recipe) -> dict[str, Any]:
    """The key that makes a step of `STEP` entries, where the pattern's has another size."""
    batch = int(pattern.get("per_device_train_batch_size", 1))
    accumulation = max(1, STEP // batch)
    same = pattern.get("gradient_accumulation_steps") == accumulation
    return {} if same else {"gradient_accumulation_steps": accumulation}
