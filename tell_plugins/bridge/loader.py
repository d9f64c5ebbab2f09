"""The loader that serves `tell/<card>:...` to ms-swift, for training and validation."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from swift.dataset import DatasetLoader, DatasetMeta
from swift.utils import get_logger

from datasets import Dataset
from tell_plugins.core import paths
from tell_plugins.core.mixture import Mixture, build_mixture
from tell_plugins.core.spec import PREFIX, parse_spec
from tell_plugins.core.state_files import made_once

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
        mixture = self._mixture = build_mixture(parse_spec(text))
        parts = [
            f"{len(source.used) * source.repeat} {source.role} rows of {source.card.name}"
            for source in mixture.sources
        ]
        logger.info(f"TELL mixture {mixture.spec}: {', '.join(parts)}; hash {mixture.hash[:16]}")
        return load_mixture(mixture)

    def post_process(self, train_dataset: Any, **kwargs: Any) -> Any:
        mixture = getattr(self, "_mixture", None)
        if mixture is not None:
            validates = kwargs.get("split_dataset_ratio") == 1
            (validated_on if validates else trained_on).append(mixture)
        return super().post_process(train_dataset, **kwargs)


def load_mixture(mixture: Mixture) -> Dataset:
    """The mixture as a memory-mapped data set, in training order; written once a content."""
    path = paths.cache_dir() / "mixtures" / f"{mixture.hash}.arrow"
    if not path.is_file():
        _forget_old(path.parent)
    made_once(path, mixture.write_arrow)
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(path)
    dataset = Dataset.from_file(str(path))
    # of the content, not of the file's time: every process then finds what the first one tokenised
    dataset._fingerprint = mixture.hash[:16]
    return dataset


def _forget_old(folder: Path) -> None:
    oldest = time.time() - _KEEP_DAYS * 86400
    for path in folder.glob("*.arrow"):  # somebody may hold a lock
        with contextlib.suppress(FileNotFoundError):  # another process forgets as well
            if path.stat().st_mtime < oldest:
                path.unlink()
