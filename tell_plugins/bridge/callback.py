"""The trainer callback: the order is kept, and manifest and anchor lie beside the adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swift.utils import get_logger
from transformers import TrainerCallback

from tell_plugins.bridge.loader import trained_on
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import Mixture

logger = get_logger()
MANIFEST, ANCHOR = "manifest.json", "anchor.txt"


class TellCallback(TrainerCallback):
    """Checks that training sees the mixture as built, and leaves manifest and anchor behind."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not trained_on:
            return
        if len(trained_on) > 1:
            raise UserError(
                f"{len(trained_on)} TELL mixtures in one run: nothing defines their joint order",
                where="dataset",
                remedy="name one, and join general cards with from=a+b",
            )
        _check_order(args, kwargs.get("train_dataloader"), trained_on[0])
        if state.is_world_process_zero:
            _leave(Path(args.output_dir))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if trained_on and state.is_world_process_zero:
            _leave(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _leave(folder: Path) -> None:
    mixture = trained_on[0]
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
        logger.warning(
            f"{len(mixture) - len(served)} rows over max_length were dropped by ms-swift"
        )
        if lost:
            raise UserError(
                f"{lost} scarce task rows are longer than max_length and were dropped",
                where=where,
                remedy="raise max_length, or see `./run.sh check`; 'strict: true' stops earlier",
            )
