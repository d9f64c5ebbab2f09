"""The files of a card on this machine: in which state they are, and how they are made ready; and
folders of cards outside the project, made known."""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, Columns, Split, card_names, find_card
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.progress import tracked
from tell_plugins.core.row_files import FORMATS, read_json_rows, read_records
from tell_plugins.core.rows import extract, file_sha256
from tell_plugins.core.sources import find_file
from tell_plugins.core.state_files import json_lines
from tell_plugins.preparation import download, halu
from tell_plugins.preparation.download import Places, Unreachable
from tell_plugins.preparation.made_rows import make_rows, recipe_of

if TYPE_CHECKING:
    from datasets import Dataset

# commands of cards that need nothing of the user's, and what they do; all others are told
BUILDS: dict[str, Callable[[Places], object]] = {
    "./run.sh data halu_cot_json --rebuild --thoughts spans": halu.rebuild_from_spans
}
NEEDED = ("train", "validation", "test")  # a card is ready when these of its splits are here


class State(NamedTuple):
    """What is known about the file of a split.

    Attributes:
        verdict: `missing`; `verified` (it has the card's blob id, or is unchanged since it was
            loaded or built); `project` (a file of the project itself); `own` (nothing is known
            that could verify it); `wrong` (another file than the card's); `changed` (another
            file than the one that was loaded or built).
        why: the verdict in words.
    """

    path: Path | None
    verdict: str
    why: str

    @property
    def usable(self) -> bool:
        return self.verdict in ("verified", "project", "own")


def state_of(card: Card, split: str) -> State:
    """The state of the file that the core would read for this split."""
    path = find_file(card, split)
    if path is None:
        return State(None, "missing", "not here")
    return State(path, *_verdict(card, split, path))


def _verdict(card: Card, split: str, path: Path) -> tuple[str, str]:
    blob, record = card.split(split).blob, download.read_record(path)
    recorded = record is not None and record["sha256"] == file_sha256(path)
    if blob is not None:
        problem = download.has_blob(blob)(path)
        if problem is None:
            return "verified", "git blob id"
        if recorded:
            return "own", "not the official file, taken with --accept"
        return "wrong", f"not the official file: {problem}"
    if record is not None:
        if not recorded:
            return "changed", "not the file its provenance describes"
        if record["from"].get("recipe") != recipe_of(card, split):
            return "changed", "made by another version of the card"
        return "verified", "sha256 as recorded beside it"
    if path.is_relative_to(paths.SHIPPED):
        return "project", "part of the project"
    return "own", "no checksum is known"


def make_ready(card: Card, split: str, places: Places) -> State:
    """Make the file of a split ready and say what was done.

    Raises UserError or MachineError when it cannot be had. A split that only a command with
    arguments of the user's builds is named and stays missing.
    """
    state, done = state_of(card, split), "is here"
    if not state.usable:
        if not _bring(card, split, places):
            print(f"  {split}: is built by  {card.split(split).build}")
            return state
        state, done = state_of(card, split), "is ready"
    if not state.usable:
        raise UserError(
            f"the file is ready at {download.target_of(card, split)}, but another of its name is "
            f"found before it: {state.why}",
            where=str(state.path),
            remedy="remove that file or give it another name",
        )
    print(f"  {split}: {done}, {state.verdict} ({state.why}): {paths.shown(state.path or '')}")
    return state


def _bring(card: Card, split: str, places: Places) -> bool:
    """Put the file of a split into its place; False where that takes a command of the user's."""
    spec, target = card.split(split), download.target_of(card, split)
    elsewhere = (places.mirror or places.folder) and split in NEEDED
    if spec.url and spec.blob:
        official = {"official": spec.url, "git_blob": spec.blob}

        def record(part: Path, place: str) -> None:
            facts = {"origin": f"from {place}", "rows": spec.rows}
            download.record_split(card, split, {"place": place, **official}, part, **facts)

        download.fetch(spec.url, download.has_blob(spec.blob), target, places, record=record)
    elif spec.made_of:
        make_rows(card, [name for name in card.splits if not state_of(card, name).usable], places)
    elif spec.modelscope or spec.huggingface or elsewhere:
        _from_hub(card, split, target, places)
    elif spec.build in BUILDS:
        print(f"  building: {spec.build}", flush=True)
        BUILDS[spec.build](places)
    elif spec.build:
        return False
    else:
        raise UserError(
            f"nothing says where '{spec.file}' can be had",
            where=f"card '{card.name}', split '{split}'",
            allowed="url and blob (`git hash-object`), made_of, modelscope, huggingface, build",
            remedy=f"put the file to {target}",
        )
    return True


def _from_hub(card: Card, split: str, target: Path, places: Places) -> None:
    """Rows of a hub, or a file of them from a mirror or a folder, as the card's JSON lines."""
    with download.locked(target):
        if state_of(card, split).usable:  # another process was faster
            return
        with download.arriving(target) as part, TemporaryDirectory() as folder:
            if places.mirror or places.folder:
                origin, found = _take_rows(card, split, places, Path(folder))
            else:
                origin, found = _load_rows(card, split, places.hub)
            with part.open("w", encoding="utf-8") as file:
                file.writelines(json_lines(found))
            rows = _check_rows(card, split, part, places.accept)
            came = origin.get("place") or "{hub} {id}, revision {revision}".format(**origin)
            download.record_split(card, split, origin, part, origin=f"from {came}", rows=rows)


def _take_rows(card: Card, split: str, places: Places, folder: Path) -> _Loaded:
    """The card's columns of a file from a mirror, by way of `folder`, or from a user's folder."""
    name, columns = card.split(split).file, card.columns_of(split)
    if places.folder is not None:
        names = (name, *(Path(name).stem + ending for ending in FORMATS))
        found = download.find_named(places.folder, *names)[0]
        return {"place": str(found), "sha256": file_sha256(found)}, _rows_in(found, columns)
    address = download.address_of(None, name, places)
    download.transfer(address, folder / name, places)
    return {"place": download.shown_url(address)}, _rows_in(folder / name, columns)


def _rows_in(file: Path, columns: Columns) -> Iterator[dict[str, Any]]:
    wanted = (*columns.names, *filter(None, [columns.history]))
    for record in read_records(file):
        value = record.value
        if not isinstance(value, dict) or any(key not in value for key in columns.names):
            raise UserError(
                record.problem or f"no row with the columns {', '.join(columns.names)}",
                where=f"{file}, line {record.line}",
                remedy="name the file of this data set",
            )
        yield {key: value[key] for key in wanted if key in value}


def _check_rows(card: Card, split: str, part: Path, accept: bool) -> int:
    """The number of rows. MachineError when it is not the card's and that is not accepted."""
    spec, columns = card.split(split), card.columns_of(split)
    found = [not isinstance(extract(row.value, columns), str) for row in read_json_rows(part)]
    if not any(found) or (spec.rows is not None and len(found) != spec.rows and not accept):
        raise MachineError(
            f"'{spec.file}' came with {len(found):,} rows ({sum(found):,} usable), the card says "
            f"{spec.rows or 0:,}; nothing was kept",
            remedy="another place (--hub, --mirror URL, --from DIR), or --accept to take it as it "
            "is",
        )
    return len(found)


# ------------------------------------------------------------------------- hubs
#
# ModelScope's loader, Hugging Face's as the alternative. The revision is asked for first. That call
# is short, so a hub that cannot be reached is told at once, where the loaders try for minutes.

MODELSCOPE, HUGGINGFACE = "modelscope", "huggingface"
HUBS = {MODELSCOPE: "ModelScope", HUGGINGFACE: "Hugging Face"}
_TIMEOUT = 15  # seconds for the first word from a hub
_Loaded = tuple[dict[str, Any], Iterable[dict[str, Any]]]  # where rows came from, and the rows
_SILENT = ("Max retries exceeded", "Failed to resolve", "Connection refused", "timed out", "E1001")


def _load_rows(card: Card, split: str, hub: str | None) -> _Loaded:
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


# ------------------------------------------------------------------------- cards


def card_text(card: dict[str, Any]) -> str:
    """The text of a card's file."""
    width = 1000  # a text stays on its line
    return yaml.safe_dump(
        card, sort_keys=False, allow_unicode=True, width=width, default_flow_style=None
    )


def check_name(name: str, folder: Path, where: str) -> None:
    """UserError for a name that no card can have, or that a card outside `folder` has."""
    found = allowed = None
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        found, allowed = f"bad name '{name}'", "letters, digits and _, a letter first"
    elif name in card_names():
        other = find_card(name).parent
        if other.resolve() != (folder / name).resolve():
            found = f"there is another card '{name}': {paths.shown(other)}"
    if found:
        raise UserError(found, where=where, allowed=allowed, remedy="choose another name")


def make_known(cards: Path) -> str | None:
    """Let this process find the cards in `cards`.

    Returns the line by which the user's shell does so too, None where that is not needed.
    """
    root = cards.resolve()
    if root in [known.resolve() for known in paths.card_roots()]:
        return None
    before = os.environ.get("TELL_CARDS")
    os.environ["TELL_CARDS"] = f"{root}{os.pathsep}{before}" if before else str(root)
    return f"export TELL_CARDS={shlex.quote(str(root))}${{TELL_CARDS:+{os.pathsep}$TELL_CARDS}}"
