"""The trainer callback: the order is kept, and manifest and anchor lie beside the adapter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from swift.utils import get_logger
from transformers import TrainerCallback

from tell_plugins.bridge.loader import forget_mixtures, trained_on
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.manifest import MANIFEST, Manifest, write_facts
from tell_plugins.core.mixture import TASK, Mixture
from tell_plugins.core.spec import weighting
from tell_plugins.core.state_files import cached_json, read_json, write_json

logger = get_logger()
_ARGS = "args.json"


class TellCallback(TrainerCallback):
    """Checks that training sees the mixture as built, and leaves manifest and anchor behind."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not trained_on:
            return
        _check_rows(kwargs.get("train_dataloader"), trained_on[0])
        _check_resumed(args, trained_on[0])
        if state.is_world_process_zero:
            write_facts(trained_on[0], Path(args.output_dir), _weighting(args))
            _make_paths_absolute(Path(args.output_dir) / _ARGS)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if trained_on and state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_facts(trained_on[0], folder, _weighting(args))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        forget_mixtures()  # a notebook may train again


def _weighting(args: Any) -> str:
    return weighting(getattr(args, "loss_type", None))


def _make_paths_absolute(file: Path) -> None:
    """Write out the paths in a run's `args.json`, of which ms-swift copies one into checkpoints.

    A recipe names plugin and model from the project's root; `swift infer --adapters DIR` reads the
    names again, in whatever folder it is called.
    """
    saved = cached_json(file, dict[str, Any], foreign=True)
    for key in ("external_plugins", "custom_register_path", "model") if saved else ():
        value = saved.get(key)
        if isinstance(value, list):
            saved[key] = [_absolute(part) for part in value]
        elif value is not None:
            saved[key] = _absolute(value)
    if saved:
        write_json(file, saved)


def _absolute(name: str) -> str:
    """A file or folder of this machine by its whole path; a hub's id stays one."""
    path = Path(os.path.expanduser(name))
    return os.path.abspath(path) if path.exists() else name


# what decides which rows a step holds: ms-swift's name in args.json, and the trainer's
_BATCHES = {
    "per_device_train_batch_size": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "global_world_size": "world_size",
    "dataloader_drop_last": "dataloader_drop_last",
}


def _check_resumed(args: Any, mixture: Mixture) -> None:
    """A run that goes on must see the mixture it began with, or its manifest tells half of it.

    The trainer skips batches, not rows: with others it would lose rows or repeat them.
    """
    named = getattr(args, "resume_from_checkpoint", None)
    if not isinstance(named, str) or getattr(args, "resume_only_model", False):
        return
    remedy = "remove the file: then nothing says which mixture that run began with"
    began = read_json(Path(named) / MANIFEST, Manifest, remedy) or {}
    saved = cached_json(Path(named) / _ARGS, dict[str, Any], foreign=True) or {}
    pairs = {name: (saved.get(key), getattr(args, name, None)) for key, name in _BATCHES.items()}
    if began.get("hash") not in (None, mixture.hash):
        pairs["mixture"] = began.get("spec"), str(mixture.spec)
        pairs["rows and anchor of hash"] = began["hash"], mixture.hash
    if began:  # an older manifest says neither weighting nor kl
        weighed = began.get("weighting", "token"), _weighting(args)
        pairs |= {"kl": (began.get("kl", 0), mixture.spec.kl), "the same weight for each": weighed}
    for name, (then, now) in pairs.items():
        if None not in (then, now) and then != now:
            raise UserError(
                f"that run had {name.replace('world_size', 'processes')} {then}, this has {now}: "
                "rows would be lost, exchanged or weighed otherwise",
                where=f"resume_from_checkpoint {paths.shown(Path(named))}",
                remedy="resume with the same, or start anew (resume_only_model: true takes the "
                "weights alone)",
            )


def _check_rows(loader: Any, mixture: Mixture) -> None:
    """Raise UserError unless training sees the mixture's rows in its order, all task rows there."""
    data = getattr(loader, "dataset", None)
    served = getattr(data, "dataset", data)
    if served is None or "channel" not in served.column_names:
        return
    channels, expected = list(served["channel"]), mixture.channels
    left, problem = iter(expected), None
    if not getattr(data, "strict", True) and "lengths" not in served.column_names:
        problem = "rows are tokenised as they come, and one over max_length would be exchanged"
        remedy = "strict: true, or lazy_tokenize: false"
    elif not all(channel in left for channel in channels):
        problem = "the rows do not come in the mixture's order, or others follow"
        remedy = "dataset_shuffle: false, split_dataset_ratio: 0, and no other data set"
    elif lost := expected.count(TASK) - channels.count(TASK):
        problem = f"{lost} scarce task rows are longer than max_length and were dropped"
        remedy = "raise max_length, or see `./run.sh check`; 'strict: true' stops earlier"
    if problem:
        raise UserError(problem, where="recipe", remedy=remedy)
    if lost := len(expected) - len(channels):
        logger.warning(f"{lost} rows over max_length were dropped by ms-swift")
