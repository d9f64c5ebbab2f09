"""What `swift sft` accepts and which models it knows, told by the installed ms-swift itself."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import typing
from pathlib import Path
from typing import Any

import swift

_MADE_BY = ("ms-swift", "transformers", "trl", "peft")  # whose versions decide the answer


def argument_keys() -> dict[str, dict[str, Any]]:
    """What `swift sft` accepts: key -> default (if plain), allowed values (if listed), type."""
    from swift.arguments import SftArguments

    hints, named = typing.get_type_hints(SftArguments), _named_values()
    keys = {}
    for field in dataclasses.fields(SftArguments):
        if not field.init:
            continue
        hint = hints.get(field.name)
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        keys[field.name] = {
            "default": default if isinstance(default, (str, int, float, bool, list)) else None,
            "choices": named.get(field.name) or _choices(hint),
            "type": _plain_type(hint),
        }
    return keys


def _named_values() -> dict[str, list[str]]:
    """Values of keys whose types leave them open, as those who read them have them."""
    from swift.arguments import get_supported_tuners
    from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
    from transformers.training_args import OptimizerNames

    named: dict[str, Any] = {
        "optim": OptimizerNames,
        "lr_scheduler_type": SchedulerType,
        "save_strategy": SaveStrategy,
        "eval_strategy": IntervalStrategy,
        "logging_strategy": IntervalStrategy,
    }
    values = {key: [str(one.value) for one in kind] for key, kind in named.items()}
    values["tuner_type"] = sorted(get_supported_tuners())
    configurations = Path(swift.__file__).parent.glob("config/zero*.json")
    return values | {"deepspeed": sorted(file.stem for file in configurations)}


def _choices(hint: Any) -> list[Any] | None:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    for part in typing.get_args(hint) if typing.get_origin(hint) is typing.Union else ():
        if typing.get_origin(part) is typing.Literal:
            return list(typing.get_args(part))
    return None


def _plain_type(hint: Any) -> str:
    kinds = [hint, *typing.get_args(hint)]
    for kind in (bool, int, float, list, dict, str):
        if any(part is kind or typing.get_origin(part) is kind for part in kinds):
            return kind.__name__
    return "str"


def model_table() -> dict[str, Any]:
    """ms-swift's own tables: its model types, the names that it knows, and its templates."""
    from swift.model import MODEL_MAPPING
    from swift.template import TEMPLATE_MAPPING

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
                for name in (model.ms_model_id, model.hf_model_id, model.model_path):
                    if name:  # the first type that has a name is the one that is taken
                        last = name.rsplit("/", 1)[-1].lower()
                        names.setdefault(last, [kind, group.template or meta.template])
    hybrid = [
        name
        for name, meta in TEMPLATE_MAPPING.items()
        if meta.is_thinking and meta.non_thinking_prefix
    ]
    return {"types": types, "names": names, "templates": list(TEMPLATE_MAPPING), "hybrid": hybrid}


def _layers(arch: Any) -> list[str]:
    """The names of a model's linear layers, as far as ms-swift has them in its table."""
    named = [v for k, v in vars(arch).items() if k.endswith("_proj") and v] if arch else []
    return sorted({str(name).rpartition(".")[2] for name in named})


def print_answer() -> None:
    """Print versions, keys and models as JSON; `check` runs this once and keeps the answer."""
    answer = {
        "version": swift.__version__,
        "made_by": {name: importlib.metadata.version(name) for name in _MADE_BY},
        "keys": argument_keys(),
        "models": model_table(),
    }
    print(json.dumps(answer, default=str))


if __name__ == "__main__":
    print_answer()
