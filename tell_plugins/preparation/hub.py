"""Data sets of a hub as JSON lines: ModelScope's loader, Hugging Face's as the alternative.

The revision is asked for first. That call is short, so a hub that cannot be reached is told at
once, where the loaders themselves would try for minutes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tell_plugins.core.cards import Card, Split
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.progress import tracked
from tell_plugins.preparation.download import Unreachable

if TYPE_CHECKING:
    from datasets import Dataset

MODELSCOPE, HUGGINGFACE = "modelscope", "huggingface"
HUBS = {MODELSCOPE: "ModelScope", HUGGINGFACE: "Hugging Face"}
_TIMEOUT = 15  # seconds for the first word from a hub
Loaded = tuple[dict[str, Any], Iterable[dict[str, Any]]]  # where rows came from, and the rows
_SILENT = ("Max retries exceeded", "Failed to resolve", "Connection refused", "timed out", "E1001")


def load_rows(card: Card, split: str, hub: str | None) -> Loaded:
    """A split's columns from `hub`, None for the first that the card names.

    With the rows comes from where: hub, id, subset, split, revision. Raises UserError for a hub
    that the card has no id of, MachineError when it cannot be reached or does not have what the
    card says.
    """
    spec, columns = card.split(split), card.columns_of(split)
    have = [name for name in HUBS if getattr(spec, name)]
    hub = hub or have[0]
    if hub not in have:
        raise UserError(
            f"no id on {HUBS[hub]} is known",
            where=f"card '{card.name}', split '{split}'",
            allowed=", ".join(f"--hub {name}" for name in have),
            remedy=f"--hub {have[0]}",
        )
    name = str(getattr(spec, hub))
    wanted = [*columns.names, *([columns.history] if columns.history else [])]
    print(f"Loading {name} from {HUBS[hub]} ...", flush=True)
    try:
        load = _from_modelscope if hub == MODELSCOPE else _from_huggingface
        revision, dataset = load(name, spec)
        rows = dataset.select_columns(wanted)
    except ModuleNotFoundError:  # a package is missing here, and nothing is wrong with the hub
        raise
    except Exception as error:  # the libraries raise dozens of kinds, and bare Exception
        raise _fault(error, hub, name, spec.file) from error
    shown = tracked(rows, f"writing {spec.file}", "rows", total=len(rows))
    facts = {"hub": hub, "id": name, "subset": spec.subset, "split": spec.hub_split}
    return facts | {"revision": revision}, ({key: row[key] for key in wanted} for row in shown)


def _from_modelscope(name: str, split: Split) -> tuple[str, Dataset]:
    from modelscope import MsDataset
    from modelscope.hub.api import HubApi
    from modelscope.utils.logger import get_logger

    get_logger().setLevel(logging.CRITICAL)
    revision = "master"  # ModelScope gives data sets no commit id
    HubApi(timeout=_TIMEOUT, max_retries=1).get_dataset_files(name, revision=revision)
    subset = {"subset_name": split.subset, "split": split.hub_split}
    return revision, MsDataset.load(name, **subset, version=revision)


def _from_huggingface(name: str, split: Split) -> tuple[str, Dataset]:
    from huggingface_hub import HfApi, logging

    from datasets import load_dataset

    logging.set_verbosity_error()
    revision = str(HfApi().dataset_info(name, timeout=_TIMEOUT).sha)
    return revision, load_dataset(name, split.subset, split=split.hub_split, revision=revision)


def _fault(error: Exception, hub: str, name: str, file: str) -> MachineError:
    """Whatever a hub's library raises, as one message."""
    text = str(error).strip() or "no message"
    silent = any(sign in text for sign in _SILENT)
    said = f"{type(error).__name__}: {text.splitlines()[0][:200]}"
    [other] = HUBS.keys() - {hub}
    why = "the hub does not answer" if silent else said
    found = f"{name} could not be loaded from {HUBS[hub]}: {why}"
    remedy = f"check the network; or --hub {other}; or --mirror URL or --from DIR, where '{file}' "
    return (Unreachable if silent else MachineError)(found, remedy=remedy + "lies")
