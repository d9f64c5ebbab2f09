"""What is to be tested: adapters and whole models, where they are and what they trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tell_plugins.bridge.protocol import MODEL_KEYS
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, nearest
from tell_plugins.core.manifest import Manifest
from tell_plugins.core.rows import file_sha256
from tell_plugins.core.spec import Spec, parse_spec
from tell_plugins.core.state_files import cached_json, read_json
from tell_plugins.recipe.recipes import (
    TUNED,
    Recipe,
    checkpoints,
    is_trained,
    is_whole_model,
    load_recipe,
)

BASE = "none"
ARGS, CONFIG = "args.json", "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # the second: of older peft
_MODELS_WEIGHTS = (".safetensors", ".bin", ".gguf")
# settings, tokenizer, code
_MODELS_TEXT = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".py")
# what a trainer leaves beside a model; it changes no answer
_OTHERS = {"training_args.bin", "trainer_state.json", "args.json", "manifest.json", "anchor.txt"}
# what plain LoRA has in peft's settings; anything else no scale of its matrices takes back
_PLAIN = {"peft_type": "LORA", "use_dora": False, "bias": "none", "modules_to_save": None}
_SMALL = 1 << 30  # bytes; a file of weights up to here is read whole
_SAMPLES, _SAMPLE = 256, 1 << 16  # else so many evenly spaced parts of so many bytes


@dataclass(frozen=True)
class Adapter:
    """One adapter, a whole model, or the base model (`path` None).

    `scale` is what the adapter's weights are multiplied by; `rival` says what answers in the base
    model's place.
    """

    name: str
    path: Path | None
    scale: float = 1.0
    rival: str = ""

    @property
    def shown(self) -> str:
        return self.rival or BASE if self.path is None else paths.shown(self.path)

    @property
    def label(self) -> str:
        """The name of its folder of answers."""
        return self.name if self.scale == 1 else f"{self.name}-scale{self.scale:g}"

    @property
    def engine_name(self) -> str | None:
        """The name under which an engine loads it; module names may hold no dots."""
        return None if self.path is None else self.name.replace(".", "_")

    @property
    def whole(self) -> bool:
        """Whether all weights were trained, so that it is a model of its own."""
        return self.path is not None and is_whole_model(self.path)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the mixture it trained on; empty where there is none."""
        for folder in () if self.path is None else (self.path, self.path.parent):
            remedy = "restore the file, or remove it: then nothing is known of the training rows"
            if found := read_json(folder / "manifest.json", Manifest, remedy):
                return dict(found)
        return {}

    @property
    def spec(self) -> Spec | None:
        """The dataset string that it trained on, where that is known."""
        return parse_spec(self.manifest["spec"]) if self.manifest else None

    @cached_property
    def args(self) -> dict[str, Any]:
        """The arguments of its training, as ms-swift saved them; empty where there are none."""
        return self.saved(ARGS)

    @property
    def model(self) -> str:
        """The model that it was trained on, as ms-swift was told, else as peft saved it."""
        return str(self.args.get("model") or self.saved(CONFIG).get("base_model_name_or_path", ""))

    @property
    def values(self) -> dict[str, Any]:
        """The keys of a recipe that say which model answers, and through which template."""
        saved = {key: self.args[key] for key in MODEL_KEYS if self.args.get(key) is not None}
        return saved | ({"model": str(self.path)} if self.whole else {})

    @property
    def folder(self) -> Path:
        """Where it is, of one that is no base model."""
        assert self.path is not None
        return self.path

    def saved(self, name: str) -> dict[str, Any]:
        """What the trainer left beside the weights: `args.json`, `adapter_config.json`.

        Empty where there is none, or one that is torn: the trainer was stopped while it wrote.
        """
        if self.path is None:
            return {}
        return cached_json(self.path / name, dict[str, Any], foreign=True) or {}

    @property
    def weights_sha256(self) -> str:
        """The hash of the file of weights, "" for the base model; of a whole model's folder."""
        return folder_sha256(self.folder) if self.whole else self._sha256(*WEIGHTS)

    @property
    def config_sha256(self) -> str:
        """The hash of peft's settings, among them the scale of the weights; "" where none are."""
        return self._sha256(CONFIG)

    def _sha256(self, *names: str) -> str:
        files = [] if self.path is None else [self.path / name for name in names]
        return next((file_sha256(file) for file in files if file.is_file()), "")

    @cached_property
    def changes_nothing(self) -> bool:
        """Whether every LoRA B matrix is zero, so that the model answers as its base does.

        False where the weights are in another file than peft's, which is not looked into.
        """
        if self.path is None:
            return True
        file = self.path / WEIGHTS[0]
        if not file.is_file():
            return False
        from safetensors import deserialize  # bytes: numpy has no bfloat16

        found = [part["data"] for name, part in deserialize(file.read_bytes()) if "lora_B" in name]
        return bool(found) and not any(bytes(data).strip(b"\0") for data in found)


def folder_sha256(folder: Path) -> str:
    """One hash over weights, settings, tokenizer and code in a model's folder; "" for no folder.

    Of a large file of weights the size, the beginning (safetensors' header) and 256 evenly spaced
    parts of 64 KiB are read: what trains a model changes all of its tensors.
    """
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in model_files(folder):
        size = path.stat().st_size
        sampled = path.suffix in _MODELS_WEIGHTS and size > _SMALL
        content = _sampled(path, size) if sampled else file_sha256(path)
        digest.update(f"{path.name} {size} {content}\n".encode())
    return digest.hexdigest()


def model_files(folder: Path) -> list[Path]:
    """The files of a model's folder on which its answers depend."""
    endings = (*_MODELS_WEIGHTS, *_MODELS_TEXT)
    named = [path for path in sorted(folder.iterdir()) if path.suffix in endings]
    return [path for path in named if path.name not in _OTHERS and path.is_file()]


def _sampled(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(number * (size - _SAMPLE) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


# --- what a command names -------------------------------------------------------------------------


def find_adapters(
    named: Sequence[str], recipe: Recipe, rivals: Sequence[str] = ()
) -> list[Adapter]:
    """What `--adapter` names; without names, the recipe's last checkpoint.

    `rivals` are names that stand for themselves, as 'none' does for the base model.
    Raises UserError for a folder without an adapter or a model, or one named twice.
    """
    adapters = []
    names = (BASE, *rivals)
    for text in named or [str(_last_run(recipe))]:
        if text in names:
            adapters.append(Adapter(text, None, rival="" if text == BASE else text))
        else:
            path = trained_folder(text, "--adapter", names)
            adapters.append(Adapter(_label(path, recipe), path))
    labels = [adapter.label for adapter in adapters]
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise UserError(f"{', '.join(sorted(twice))} named twice", where="--adapter", remedy="once")
    return adapters


def with_baseline(recipe: Recipe, variant: str, named: Sequence[str]) -> list[str]:
    """What `--adapter` is to name: the base model, the recipe's run (or `named`), the baseline's.

    A tuned recipe has the baselines of the one that it was tuned from. Raises UserError where
    there is no recipe `<recipe>_<variant>.yaml`, or no run of one of them.
    """
    stem = recipe.path.stem.removesuffix(TUNED)
    path = recipe.path.with_name(f"{stem}_{variant}.yaml")
    if not path.is_file():
        beside = recipe.path.parent.glob(f"{stem}_*.yaml")
        variants = [p.stem.removeprefix(f"{stem}_") for p in beside]
        match = nearest(variant, variants)
        raise UserError(
            f"no recipe '{path.name}'",
            where=f"--against {variant}",
            allowed=", ".join(sorted(variants)) or f"{stem}_<VARIANT>.yaml beside this recipe",
            remedy=f"did you mean '{match}'?" if match else "write that recipe, then train it",
        )
    own = [name for name in named if name != BASE] or [str(_last_run(recipe))]
    return [BASE, *own, str(_last_run(load_recipe(path)))]


def _last_run(recipe: Recipe) -> Path:
    found = checkpoints(recipe.output_dir)
    if not found:
        raise UserError(
            f"no trained adapter in {paths.shown(recipe.output_dir)}",
            where=recipe.where("output_dir"),
            remedy=f"./run.sh train {paths.shown(recipe.path)}, or --adapter none for the base",
        )
    return found[-1].absolute()


def at_scales(adapters: Sequence[Adapter], scales: Sequence[float]) -> list[Adapter]:
    """Each adapter at each scale of its LoRA weights; the base model once.

    Raises UserError for what no scale of LoRA matrices takes back exactly.
    """
    if list(scales) == [1.0]:
        return list(adapters)
    found = []
    for adapter in adapters:
        config = {} if adapter.path is None else adapter.saved(CONFIG)
        more = [key for key, plain in _PLAIN.items() if config.get(key) not in (plain, None, [])]
        if more or adapter.whole:
            raise UserError(
                f"its weights are not LoRA matrices alone ({', '.join(more) or 'no adapter'})",
                where=f"adapter {adapter.shown}",
                allowed="plain LoRA, whose change of the model grows with its scale",
                remedy="leave --scales out",
            )
        found += [replace(adapter, scale=s) for s in (scales if adapter.path else [1.0])]
    return found


def trained_folder(text: str, where: str, names: Sequence[str] = ()) -> Path:
    """The checkpoint that `text` names, of a run's folder its last.

    `names` are what may stand there as well. Raises UserError for a folder without an adapter or a
    model.
    """
    path = paths.user_path(text)
    if is_trained(path):
        return path
    found = checkpoints(path) if path.is_dir() else []
    if not found:
        raise UserError(
            f"no adapter in '{text}'",
            where=where,
            allowed="a checkpoint folder, a run folder that holds checkpoints, a model's folder"
            + "".join(f", or {name}" for name in names),
            remedy="`./run.sh train RECIPE` makes one, in output/RECIPE (adapter_config.json; of a "
            "whole model config.json and model.safetensors)",
        )
    return found[-1]


def _label(path: Path, recipe: Recipe) -> str:
    """A folder name for an adapter's answers: the last parts of its path, so that runs differ."""
    inside = path.resolve()
    for root in (recipe.output_dir.resolve(), recipe.output_dir.resolve().parent):
        if inside.is_relative_to(root):
            return "--".join(inside.relative_to(root).parts)
    return "--".join(inside.parts[-3:])


def read_run(text: str, scale: float = 1.0) -> Adapter:
    """The run that `text` names. Raises UserError for a folder that is none of TELL's."""
    folder = trained_folder(text, "RUN")
    (adapter,) = at_scales([Adapter(folder.name, folder)], [scale])
    if not adapter.manifest or not adapter.args:
        raise UserError(
            f"no {ARGS if adapter.manifest else 'manifest.json'}, so nothing says how it was "
            "trained",
            where=paths.shown(folder),
            allowed="a checkpoint of `./run.sh train`",
            remedy="restore the file",
        )
    return adapter
