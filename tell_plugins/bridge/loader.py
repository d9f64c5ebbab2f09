"""The loader that serves `tell/<card>:...` to ms-swift, for training and validation."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from filelock import FileLock
from swift.dataset import DatasetLoader, DatasetMeta
from swift.utils import get_logger

from datasets import Dataset
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import HELD_OUT, Mixture, build_mixture
from tell_plugins.core.spec import PREFIX, Spec, parse_spec
from tell_plugins.core.state_files import is_whole

logger = get_logger()
trained_on: list[Mixture] = []  # the mixtures that this process serves as training data
validated_on: list[Mixture] = []  # and those it serves to be validated on
_KEEP_DAYS = 30  # how long an unused mixture file stays in the cache


def forget_mixtures() -> None:
    """The next training of this process begins with none."""
    trained_on.clear()
    validated_on.clear()


class TellLoader(DatasetLoader):
    """Serves `tell/<card>:...`; anything else goes to ms-swift's own loader.

    (ms-swift matches ids by their last part, so a foreign `.../gsm8k` may end here.)
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
        logger.info(f"TELL mixture {self._spec}: {_described(self._mixture)}")
        return load_mixture(self._mixture)

    def post_process(self, train_dataset: Any, **kwargs: Any) -> Any:
        mixture = getattr(self, "_mixture", None)
        if mixture is not None:
            ratio = kwargs.get("split_dataset_ratio", 0.0)
            _check_use(self._spec, ratio, kwargs.get("dataset_sample"))
            (validated_on if ratio == 1 else trained_on).append(mixture)
        return super().post_process(train_dataset, **kwargs)


def _described(mixture: Mixture) -> str:
    """One line: rows by source, and the hash."""
    parts = [
        f"{len(source.used) * source.repeat} {source.role} rows of {source.card.name}"
        for source in mixture.sources
    ]
    return f"{', '.join(parts)}; hash {mixture.hash[:16]}"


def _check_use(spec: Spec, ratio: float, sample: int | None) -> None:
    """Refuse what would take rows out of the mixture, or train on rows that never do."""
    if sample is not None:
        raise UserError(
            f"'#{sample}' takes no sample of a mixture",
            where=str(spec),
            remedy="set the amounts with task=... and general=...",
        )
    if ratio != 1 and spec.split in HELD_OUT:
        raise UserError(
            f"split '{spec.split}' is held out: its rows never train",
            where=str(spec),
            remedy="use it under val_dataset, or train on split=train",
        )


def load_mixture(mixture: Mixture) -> Dataset:
    """The mixture as a memory-mapped data set, in training order; written once a content."""
    path = paths.cache_dir() / "mixtures" / f"{mixture.hash}.arrow"
    if not is_whole(path):
        _write(mixture, path)
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(path)
    dataset = Dataset.from_file(str(path))
    # of the content, not of the file's time: every process then finds what the first one tokenised
    dataset._fingerprint = mixture.hash[:16]
    return dataset


def _write(mixture: Mixture, path: Path) -> None:
    folder = paths.make_folder(path.parent)
    with FileLock(f"{path}.lock"):
        if not is_whole(path):  # no other process was faster
            _forget_old(folder)
            mixture.write_arrow(path)


def _forget_old(folder: Path) -> None:
    oldest = time.time() - _KEEP_DAYS * 86400
    for path in folder.glob("*"):
        if path.suffix == ".lock":
            continue  # somebody may hold it
        with contextlib.suppress(FileNotFoundError):  # another process forgets as well
            if path.stat().st_mtime < oldest:
                path.unlink()
