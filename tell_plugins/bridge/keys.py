"""What `swift sft` accepts and which models it knows, told by the installed ms-swift itself."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import typing
from pathlib import Path
from typing import Any

import swift
from swift.arguments import SftArguments, get_supported_tuners
from swift.model import MODEL_MAPPING
from swift.template import TEMPLATE_MAPPING
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

_MADE_BY = ("ms-swift", "transformers", "trl", "peft")  # whose versions decide the answer
_ENUMS: dict[str, Any] = {  # whose types leave their values open
    "optim": OptimizerNames,
    "lr_scheduler_type": SchedulerType,
    "save_strategy": SaveStrategy,
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
}
_PLAIN = (str, int, float, bool, list)


def argument_keys() -> dict[str, dict[str, Any]]:
    """What `swift sft` accepts: key -> default (if plain), allowed values (if listed), type."""
    hints = typing.get_type_hints(SftArguments)
    named = {key: [str(one.value) for one in kind] for key, kind in _ENUMS.items()}
    named["tuner_type"] = sorted(get_supported_tuners())
    configurations = Path(swift.__file__).parent.glob("config/zero*.json")
    named["deepspeed"] = sorted(file.stem for file in configurations)
    keys = {}
    for field in dataclasses.fields(SftArguments):
        if not field.init:
            continue
        hint, default = hints.get(field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        keys[field.name] = {
            "default": default if isinstance(default, _PLAIN) else None,
            "choices": named.get(field.name) or _choices(hint),
            "type": _plain_type(hint),
        }
    return keys


def _choices(hint: Any) -> list[Any] | None:
    """The values of a `Literal`, also of one among the types of a union."""
    inside = typing.get_args(hint) if typing.get_origin(hint) is typing.Union else ()
    literals = [part for part in (hint, *inside) if typing.get_origin(part) is typing.Literal]
    return list(typing.get_args(literals[0])) if literals else None


def _plain_type(hint: Any) -> str:
    kinds = [hint, *typing.get_args(hint)]
    for kind in (bool, int, float, list, dict, str):
        if any(part is kind or typing.get_origin(part) is kind for part in kinds):
            return kind.__name__
    return "str"


def model_table() -> dict[str, Any]:
    """ms-swift's own tables: its model types, the names that it knows, and its templates."""
    types: dict[str, dict[str, Any]] = {}
    names: dict[str, list[str | None]] = {}
    for kind, meta in MODEL_MAPPING.items():
        types[kind] = {
            "template": meta.template,
            "templates": list(meta.candidate_templates),
            "architectures": [name for name in meta.architectures if name != "null"],
            "layers": _layers(meta.model_arch),
        }
        for group in meta.model_groups:
            for model in group.models:
                for name in filter(None, (model.ms_model_id, model.hf_model_id, model.model_path)):
                    # the first type that has a name is the one that is taken
                    last = name.rsplit("/", 1)[-1].lower()
                    names.setdefault(last, [kind, group.template or meta.template])
    hybrid = [
        name
        for name, meta in TEMPLATE_MAPPING.items()
        if meta.is_thinking and meta.non_thinking_prefix
    ]
    return {"types": types, "names": names, "templates": list(TEMPLATE_MAPPING), "hybrid": hybrid}


def hub_id(model: str) -> str | None:
    """Hugging Face's id of a model that ms-swift's tables know, by its name: of a folder, or of a
    model on ModelScope. None for others."""
    name = Path(model).name.lower()
    groups = (group for meta in MODEL_MAPPING.values() for group in meta.model_groups)
    for known in (model for group in groups for model in group.models):
        ids = (known.hf_model_id, known.ms_model_id)
        if known.hf_model_id and name in [Path(text or "").name.lower() for text in ids]:
            return str(known.hf_model_id)
    return None


def _layers(arch: Any) -> list[str]:
    """The names of a model's linear layers, as far as ms-swift has them in its table."""
    named = [v for k, v in vars(arch).items() if k.endswith("_proj") and v] if arch else []
    return sorted({str(name).rpartition(".")[2] for name in named})


if __name__ == "__main__":  # `check` runs this once and keeps the answer
    answer = {
        "version": swift.__version__,
        "made_by": {name: importlib.metadata.version(name) for name in _MADE_BY},
        "keys": argument_keys(),
        "models": model_table(),
    }
    print(json.dumps(answer, default=str))
