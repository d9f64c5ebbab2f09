"""The one module that knows ms-swift (4.0.4 and 4.6): loader, registration, callback, Qwen fix.

Nothing here trains: ms-swift does. The loader serves `tell/<card>:...`, the callback puts the
manifest and the anchor into the run's output folder and refuses settings that would undo the
mixture's order.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import typing
from pathlib import Path
from types import TracebackType
from typing import Any

import swift
from datasets import Dataset
from filelock import FileLock
from swift.dataset import DatasetLoader, DatasetMeta, register_dataset
from swift.utils import get_logger
from transformers import TrainerCallback
from transformers import trainer as hf_trainer

from tell_plugins.core import paths
from tell_plugins.core.cards import card_names, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import HELD_OUT, Mixture, build_mixture
from tell_plugins.core.spec import PREFIX, Spec, is_tell, parse_spec

logger = get_logger()
MANIFEST, ANCHOR = "manifest.json", "anchor.txt"
_KEEP_DAYS = 30  # how long an unused mixture file stays in the cache
_trained_on: list[Mixture] = []  # the mixtures that this process serves as training data


def register() -> None:
    """Register every card with ms-swift, the callback with the trainer, and the Qwen fix."""
    _install_excepthook()
    _check_arguments(sys.argv)
    for name in card_names():
        dataset_id = f"{PREFIX}{name}"
        register_dataset(
            DatasetMeta(ms_dataset_id=dataset_id, hf_dataset_id=dataset_id, loader=TellLoader),
            exist_ok=True,
        )
    if TellCallback not in hf_trainer.DEFAULT_CALLBACKS:
        hf_trainer.DEFAULT_CALLBACKS.append(TellCallback)
    let_qwen_generate()


def _check_arguments(argv: list[str]) -> None:
    """Refuse a wrong dataset string before a model is loaded, not after."""
    for argument in argv:
        if is_tell(argument):
            load_card(parse_spec(argument).card)


def _install_excepthook() -> None:
    """Show a user's mistake as one message; everything else keeps its traceback."""
    previous = sys.excepthook
    if getattr(previous, "_tell", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, UserError) and not os.environ.get("TELL_DEBUG"):
            print(f"\n{error}", file=sys.stderr)
        else:
            previous(kind, error, trace)

    hook._tell = True  # type: ignore[attr-defined]
    sys.excepthook = hook


class TellLoader(DatasetLoader):
    """Serves `tell/<card>:...`; anything else goes to ms-swift's own loader.

    (ms-swift matches data sets by the last part of their id, so a foreign `.../gsm8k` may end here.)
    """

    def load(self, dataset_syntax: Any = None, dataset_meta: Any = None, **kwargs: Any) -> Any:
        if not dataset_syntax.dataset.startswith(PREFIX):
            return super().load(dataset_syntax, DatasetMeta(), **kwargs)
        text = dataset_syntax.dataset
        if dataset_syntax.subsets:
            text += ":" + "/".join(dataset_syntax.subsets)
        if self.streaming:
            raise UserError(
                "'streaming: true' does not go with a TELL mixture",
                where=text,
                remedy="remove it: the rows stay on disk anyway",
            )
        self._spec = parse_spec(text)
        self._mixture = build_mixture(self._spec)
        logger.info(f"TELL mixture {self._spec}: {describe(self._mixture)}")
        return load_mixture(self._mixture)

    def post_process(self, train_dataset: Any, **kwargs: Any) -> Any:
        mixture = getattr(self, "_mixture", None)
        if mixture is not None:
            ratio = kwargs.get("split_dataset_ratio", 0.0)
            _check_use(self._spec, ratio, kwargs.get("dataset_sample"), kwargs.get("shuffle", True))
            if ratio != 1:
                _trained_on.append(mixture)
        return super().post_process(train_dataset, **kwargs)


def describe(mixture: Mixture) -> str:
    """One line: rows by source, and the hash."""
    parts = [
        f"{len(source.used) * source.copies} {source.role} rows of {source.card.name}"
        for source in mixture.sources
    ]
    return f"{', '.join(parts)}; hash {mixture.hash[:16]}"


def _check_use(spec: Spec, ratio: float, sample: int | None, shuffle: bool) -> None:
    """Refuse what would change the mixture after it was built."""
    if sample is not None:
        raise UserError(
            f"'#{sample}' takes no sample of a mixture",
            where=str(spec),
            remedy="set the amounts with task=... and general=...",
        )
    if 0 < ratio < 1:
        raise UserError(
            f"split_dataset_ratio {ratio:g} would take scarce task rows out of training",
            where=str(spec),
            remedy=f"split_dataset_ratio: 0, and val_dataset: [{PREFIX}{spec.card}:split=validation]",
        )
    if ratio == 1:
        return
    if spec.split in HELD_OUT:
        raise UserError(
            f"split '{spec.split}' is held out: its rows never train",
            where=str(spec),
            remedy="use it under val_dataset, or train on split=train",
        )
    if shuffle:
        raise UserError(
            "dataset_shuffle is true, so the mixture's order would be lost",
            where=str(spec),
            remedy="dataset_shuffle: false and train_dataloader_shuffle: false",
        )


def load_mixture(mixture: Mixture) -> Dataset:
    """The mixture as a memory-mapped data set, in training order; written once a content."""
    folder = paths.cache_dir() / "mixtures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{mixture.hash}.arrow"
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            _forget_old(folder)
            mixture.write_arrow(path)
        os.utime(path)
    return Dataset.from_file(str(path))


def _forget_old(folder: Path) -> None:
    oldest = time.time() - _KEEP_DAYS * 86400
    for path in folder.glob("*"):
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)


class TellCallback(TrainerCallback):
    """Checks that training sees the mixture as built, and leaves manifest and anchor behind."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not _trained_on:
            return
        if len(_trained_on) > 1:
            raise UserError(
                f"{len(_trained_on)} TELL mixtures in one run: nothing defines their joint order",
                where="dataset",
                remedy="name one, and join general cards with from=a+b",
            )
        _check_order(args, kwargs.get("train_dataloader"), _trained_on[0])
        if state.is_world_process_zero:
            _leave(Path(args.output_dir))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if _trained_on and state.is_world_process_zero:
            _leave(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _leave(folder: Path) -> None:
    mixture = _trained_on[0]
    text = json.dumps(mixture.manifest(), indent=2, ensure_ascii=False) + "\n"
    paths.write_text(folder / MANIFEST, text)
    if mixture.task is not None:
        paths.write_text(folder / ANCHOR, mixture.task.anchor.text)


def _check_order(args: Any, loader: Any, mixture: Mixture) -> None:
    where = "recipe"
    for key in ("train_dataloader_shuffle", "group_by_length"):
        if getattr(args, key, False):
            raise UserError(
                f"{key} is true, so the mixture's order would be lost",
                where=where,
                remedy=f"{key}: false",
            )
    data = getattr(loader, "dataset", None)
    if data is None:
        return
    if "Packing" in type(data).__name__:
        raise UserError(
            "packing puts rows together by length, so the mixture's order would be lost",
            where=where,
            remedy="packing: false",
        )
    served = getattr(data, "dataset", data)
    if len(served) > len(mixture):
        raise UserError(
            f"{len(served) - len(mixture)} rows of other data sets follow the mixture",
            where="dataset",
            remedy="name one TELL data set alone; general data goes in by from=...",
        )
    if len(served) < len(mixture) and "channel" in served.column_names:
        lost = int(mixture.is_task.sum()) - served["channel"].count("task")
        logger.warning(f"{len(mixture) - len(served)} rows over max_length were dropped by ms-swift")
        if lost:
            raise UserError(
                f"{lost} scarce task rows are longer than max_length and were dropped",
                where=where,
                remedy="raise max_length, or see `./run.sh check`; 'strict: true' stops earlier",
            )


def let_qwen_generate() -> None:
    """Let Qwen-7B-Chat's remote code generate under transformers 4.56.

    Its attention expects no cache or tuples; transformers hands a DynamicCache to every class that
    does not say otherwise. https://huggingface.co/Qwen/Qwen-7B-Chat/blob/main/modeling_qwen.py
    """
    from transformers.generation.utils import GenerationMixin

    original = getattr(GenerationMixin, "_supports_default_dynamic_cache", None)
    if original is None or getattr(original, "_tell", False):
        return

    def supports(cls: type) -> bool:
        if any(base.__name__ == "QWenLMHeadModel" for base in cls.__mro__):
            return False
        return bool(original.__func__(cls))

    supports._tell = True  # type: ignore[attr-defined]
    GenerationMixin._supports_default_dynamic_cache = classmethod(supports)


def argument_keys() -> dict[str, dict[str, Any]]:
    """What `swift sft` accepts: key -> default (if plain), allowed values (if listed), type."""
    from swift.arguments import SftArguments

    hints = typing.get_type_hints(SftArguments)
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
            "choices": _choices(hint),
            "type": _plain_type(hint),
        }
    return keys


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


def print_argument_keys() -> None:
    """Print version and keys as JSON; `check` runs this once an installation and keeps the answer."""
    print(json.dumps({"version": swift.__version__, "keys": argument_keys()}, default=str))
