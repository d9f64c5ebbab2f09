"""Rules on the loss: dataset string and recipe agree, and nothing hides what the loss needs."""

from __future__ import annotations

from collections.abc import Iterator

from tell_plugins.core.errors import UserError
from tell_plugins.core.spec import LOSS_TYPE, NONE, Spec
from tell_plugins.recipe.findings import Finding, error, warning
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.settings import Settings


def check_loss(recipe: Recipe, settings: Settings) -> Iterator[Finding]:
    """`kl` of the dataset string against `loss_type`, and `loss_type: tell` against other keys."""
    spec = _spec(recipe)
    kl = spec.kl if spec is not None else 0.0
    if settings.text("loss_type") == LOSS_TYPE:
        yield from _check_settings(recipe, settings)
        if kl:
            yield from _check_held(recipe, settings)
    elif kl:
        yield error(
            "tell-kl",
            f"kl={kl:g} has no effect without the loss that knows it",
            recipe.where("dataset"),
            f"write 'loss_type: {LOSS_TYPE}', or take kl out of the dataset string",
        )
    if spec is not None and kl:
        yield from _check_rows(recipe, spec)


def _spec(recipe: Recipe) -> Spec | None:
    try:
        return recipe.spec
    except UserError:  # the rule on the dataset says what is wrong
        return None


def _check_settings(recipe: Recipe, settings: Settings) -> Iterator[Finding]:
    wrong = {
        "use_liger_kernel: false": settings.flag("use_liger_kernel"),
        "sequence_parallel_size: 1": settings.integer("sequence_parallel_size", 1) > 1,
        "packing: false": settings.flag("packing"),
        "enable_dft_loss: false": settings.flag("enable_dft_loss"),
        "label_smoothing_factor: 0": settings.number("label_smoothing_factor") > 0,
        "loss_scale: default": settings.text("loss_scale", "default") != "default",
    }
    for remedy, given in wrong.items():
        key = remedy.partition(":")[0]
        if given:
            yield error(
                "tell-loss",
                f"'loss_type: {LOSS_TYPE}' does not go with '{key}'",
                recipe.where(key),
                f"write '{remedy}', or leave out loss_type",
            )


def _check_held(recipe: Recipe, settings: Settings) -> Iterator[Finding]:
    if settings.text("tuner_type", "lora") == "full":
        yield error(
            "tell-kl",
            "kl holds general rows to the model without its adapter, and full tuning has none",
            recipe.where("tuner_type"),
            "write 'tuner_type: lora', or kl=0 in the dataset string",
        )
    if settings.given("fsdp") or "zero3" in settings.text("deepspeed"):
        yield error(
            "tell-kl",
            "kl asks for a second forward pass in some processes only, and the weights are spread "
            "over all of them",
            recipe.where("fsdp" if settings.given("fsdp") else "deepspeed"),
            "write 'deepspeed: zero2', or kl=0 in the dataset string",
        )


def _check_rows(recipe: Recipe, spec: Spec) -> Iterator[Finding]:
    if spec.task == NONE:
        yield error(
            "tell-kl-rows",
            f"with task=0 and kl={spec.kl:g} every row is held to what the model already is, so "
            "nothing trains",
            recipe.where("dataset"),
            "take kl out of the dataset string, or ask for task rows",
        )
    elif spec.general == NONE:
        yield warning(
            "tell-kl-rows",
            f"kl={spec.kl:g} holds general rows, and general=0 takes none",
            recipe.where("dataset"),
            "ask for general rows, for example general=2x",
        )
