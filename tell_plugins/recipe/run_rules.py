"""Rules on the run itself: the model, its adapter, packages, and settings that are nearly wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from tell_plugins.core import paths
from tell_plugins.core.errors import nearest
from tell_plugins.recipe.findings import Finding, error, warning
from tell_plugins.recipe.model_rules import foreign_layers
from tell_plugins.recipe.models import is_embedded, may_be_hub_id, model_folder
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.settings import Settings
from tell_plugins.recipe.shapes import shape_of

LIGER = "liger-kernel==0.6.5"  # its fused loss was run with ms-swift 4.0.4 and transformers 4.56
_HIGH_RATE = 5e-3  # beyond what LoRA runs use; a lost minus sign or power is likelier


def check_model(recipe: Recipe) -> Iterator[Finding]:
    """A model is named, and a folder that is named holds one."""
    if not recipe.values.get("model"):
        yield error(
            "tell-model-missing",
            "no 'model'",
            recipe.where(),
            "name a hub id or a folder",
            "model: ...",
        )
        return
    model = str(recipe.values["model"])
    if is_embedded(model):
        return
    folder = model_folder(model)
    if folder is None and not may_be_hub_id(model):
        yield error(
            "tell-model-missing",
            f"no model folder '{model}'",
            recipe.where("model"),
            "correct the path (from the project's folder), or name a hub id",
            "a folder with config.json, or owner/name",
        )
    if folder is not None and not (folder / "config.json").is_file():
        yield error(
            "tell-model-missing",
            f"folder '{model}' holds no config.json, so it is no model",
            recipe.where("model"),
            "name the folder that holds config.json",
        )


def check_targets(recipe: Recipe, settings: Settings) -> Iterator[Finding]:
    """`target_modules` that the model does not have."""
    shape = shape_of(settings.text("model"))
    names = settings.names("target_modules")
    if settings.given("target_regex") or not names:
        return
    if shape is None:
        yield from foreign_layers(recipe, settings, names)
        return
    known = [*shape.modules, "all-linear", "all-embedding", "lm_head", "embed_tokens"]
    for name in names:
        if name.rpartition(".")[2] not in known:
            match = nearest(name, shape.modules)
            yield error(
                "tell-targets",
                f"'target_modules' names '{name}', which {shape.name} does not have",
                recipe.where("target_modules"),
                f"did you mean '{match}'?" if match else "use one of the allowed names",
                ", ".join([*shape.modules, "all-linear"]),
            )


def check_packages(recipe: Recipe, settings: Settings) -> Iterator[Finding]:
    """Packages that a setting needs and requirements/ does not bring."""
    if settings.flag("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        yield warning(
            "tell-package",
            "'use_liger_kernel' needs a package that is not installed here",
            recipe.where("use_liger_kernel"),
            f".venv/bin/pip install {LIGER} (where the training runs)",
        )


def check_near_misses(recipe: Recipe, settings: Settings) -> Iterator[Finding]:
    """Settings that work, but hardly as meant."""
    if settings.flag("use_liger_kernel") and settings.flag("enable_channel_loss"):
        yield warning(
            "tell-liger-channel",
            "'enable_channel_loss' computes the loss outside Liger's kernel, so the logits are "
            "held in memory after all",
            recipe.where("enable_channel_loss"),
            "leave out one of the two",
        )
    rate = settings.number("learning_rate", 1e-4)
    if rate > _HIGH_RATE:
        yield warning(
            "tell-rate-high",
            f"'learning_rate' is {rate:g}; the paper's is 1e-4",
            recipe.where("learning_rate"),
            "check the exponent's sign",
        )
    if settings.text("save_strategy") == "no":
        yield warning(
            "tell-no-save",
            "'save_strategy' is no, so no adapter is kept",
            recipe.where("save_strategy"),
            "write 'save_strategy: \"epoch\"'",
        )
    yield from _check_folder(recipe, settings)


def check_resumed(recipe: Recipe, settings: Settings) -> Iterator[Finding]:
    """A checkpoint to resume from that is not there, where ms-swift has a traceback."""
    named = settings.text("resume_from_checkpoint")
    if named and not (paths.PROJECT / paths.expanded(named) / "trainer_state.json").is_file():
        yield error(
            "tell-checkpoint",
            f"no checkpoint '{named}'",
            recipe.where("resume_from_checkpoint"),
            "name one of the run's checkpoint-N folders",
            "a folder with trainer_state.json; in a recipe, from the project's folder",
        )


def _check_folder(recipe: Recipe, settings: Settings) -> Iterator[Finding]:
    if not settings.given("output_dir"):
        yield warning(
            "tell-output-dir",
            "no 'output_dir': `swift sft` by itself writes to a folder named after the model, not "
            f"to {paths.shown(recipe.output_dir)}, where `./run.sh train` writes and `eval` looks",
            recipe.where(),
            f"write 'output_dir: output/{recipe.name}'",
        )
    if settings.flag("add_version") or settings.given("resume_from_checkpoint"):
        return
    if any(recipe.output_dir.glob("checkpoint-*")) or any(recipe.output_dir.glob("logging.jsonl")):
        yield warning(
            "tell-output-mixed",
            f"'add_version' is false and {paths.shown(recipe.output_dir)} already holds a run: "
            "the two would mix",
            recipe.where("add_version"),
            "write 'add_version: true', or name another output_dir",
        )
