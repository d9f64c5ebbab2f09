"""The paper's hyper-parameters (Appendix A.1), the defaults of its framework then, and a recipe's.

"The framework then" is ms-swift 1.7 of March 2024: where the paper is silent, its defaults are
what the experiments most likely ran with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tell_plugins.core.spec import LOSS_TYPE, Spec
from tell_plugins.recipe.models import shape_of
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.schedule import training_of

# how the names of the paper's task cards begin, those of rebuilt rows included
TASKS = ("halu_cot_json", "en_is_news", "is_en_news", "gsm8k")
# fixed by the paper: key of ms-swift -> value
FIXED: dict[str, Any] = {
    "tuner_type": "lora",
    "lora_rank": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "optim": "adamw_torch",
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.03,
    "num_train_epochs": 1,
    "seed": 42,
}
_BATCH = 16
# where the paper is silent, the defaults of ms-swift 1.7
OF_ITS_TIME: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "max_grad_norm": 0.5,
    "adam_beta2": 0.999,
    "torch_dtype": "bfloat16",
    "lora_dtype": "float32",
    "max_length": 2048,
    "loss_type": LOSS_TYPE,  # each row of a step weighed the same
    "split_dataset_ratio": 0.01,
}
# what would override or change the above, and the values that leave it alone
NEUTRAL: dict[str, Any] = {
    "warmup_steps": 0,  # above 0 it wins over warmup_ratio
    "max_steps": -1,
    "optimizer": "unset",
    "adam_beta1": 0.9,
    "adam_epsilon": 1e-8,
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": "none",
    "init_weights": "true",
    "lorap_lr_ratio": "unset",
    "neftune_noise_alpha": "unset",
    "label_smoothing_factor": 0.0,
}


class Departure(NamedTuple):
    """A setting that is not the paper's, or not its framework's default of the time."""

    key: str
    paper: str | None
    of_its_time: str | None
    recipe: str
    given: bool = True  # False when the recipe leaves it to ms-swift's default of today


def departures(recipe: Recipe, spec: Spec | None) -> list[Departure]:
    """What a recipe does other than the paper. Raises UserError for values it cannot read."""
    rows = training_of(recipe).rows_per_step
    neutral = {key: value for key, value in NEUTRAL.items() if recipe.value(key) is not None}
    found: list[Departure] = []
    for key, expected in FIXED.items():
        found += _compare(recipe, key, expected, in_paper=True)
    if rows != _BATCH:
        found.append(Departure("rows a step", str(_BATCH), None, str(rows)))
    for key, expected in (OF_ITS_TIME | neutral).items():
        found += _compare(recipe, key, expected, in_paper=False)
    shape, mine = shape_of(recipe.text("model")), recipe.names("target_modules")
    if shape is not None:  # the layers that ms-swift 1.7 adapted
        then = ["c_attn"] if "c_attn" in shape.modules else ["q_proj", "k_proj", "v_proj"]
        if set(mine) != set(then):
            given = recipe.given("target_modules")
            texts = ", ".join(then), ", ".join(mine)
            found.append(Departure("target_modules", None, *texts, given))
    if spec is not None and spec.kl:
        found.append(Departure("dataset: kl", "0", None, f"{spec.kl:g}"))
    if spec is not None and spec.seed != FIXED["seed"]:
        found.append(Departure("dataset: seed", "42", None, str(spec.seed)))
    return found


def _compare(recipe: Recipe, key: str, expected: Any, *, in_paper: bool) -> list[Departure]:
    value = recipe.flag(key) if isinstance(expected, bool) else recipe.value(key)
    if key == "learning_rate" and value is None:
        value = training_of(recipe).learning_rate  # ms-swift sets it late
    if _equal(value, expected):
        return []
    paper, then = (_shown(expected), None) if in_paper else (None, _shown(expected))
    mine = "unset" if value is None else _shown(value)
    return [Departure(key, paper, then, mine, recipe.given(key))]


def _equal(value: Any, expected: Any) -> bool:
    if isinstance(expected, str):
        return str(value) == expected
    try:
        return float(value) == float(expected)
    except (TypeError, ValueError):
        return False


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
