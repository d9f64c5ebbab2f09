"""The paper's hyper-parameters (Appendix A.1), the defaults of its framework then, and a recipe's.

"The framework then" is ms-swift 1.7 of March 2024: where the paper is silent, its defaults are
what the experiments most likely ran with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tell_plugins.core.spec import LOSS_TYPE, Spec
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.schedule import training_of
from tell_plugins.recipe.shapes import shape_of

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
_QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")


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
    found = [_compare(recipe, key, value, None) for key, value in FIXED.items()]
    if rows != _BATCH:
        found.append(Departure("rows a step", str(_BATCH), None, str(rows)))
    found += [_compare(recipe, key, None, v) for key, v in (OF_ITS_TIME | neutral).items()]
    found.append(_compare_modules(recipe))
    if spec is not None and spec.kl:
        found.append(Departure("dataset: kl", "0", None, f"{spec.kl:g}"))
    if spec is not None and spec.seed != FIXED["seed"]:
        found.append(Departure("dataset: seed", "42", None, str(spec.seed)))
    return [difference for difference in found if difference is not None]


def _compare_modules(recipe: Recipe) -> Departure | None:
    """The layers that are adapted, against ms-swift 1.7's default for the model."""
    shape, mine = shape_of(recipe.text("model")), recipe.names("target_modules")
    if shape is None:
        return None
    then = ("c_attn",) if "c_attn" in shape.modules else _QUERY_KEY_VALUE
    key, given = "target_modules", recipe.given("target_modules")
    same = sorted(mine) == sorted(then)
    return None if same else Departure(key, None, ", ".join(then), ", ".join(mine), given)


def _compare(recipe: Recipe, key: str, paper: Any, of_its_time: Any) -> Departure | None:
    expected = of_its_time if paper is None else paper
    value = recipe.flag(key) if isinstance(expected, bool) else recipe.value(key)
    if key == "learning_rate" and value is None:
        value = training_of(recipe).learning_rate  # ms-swift sets it late
    if _equal(value, expected):
        return None
    mine = _shown(value) or "unset"
    return Departure(key, _shown(paper), _shown(of_its_time), mine, recipe.given(key))


def _equal(value: Any, expected: Any) -> bool:
    if isinstance(expected, str):
        return str(value) == expected
    try:
        return float(value) == float(expected)
    except (TypeError, ValueError):
        return False


def _shown(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
