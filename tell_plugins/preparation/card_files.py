"""The files of a card on this machine: in which state they are, and how they are made ready."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.rowfiles import FORMATS, read_records
from tell_plugins.core.rows import extract, file_sha256
from tell_plugins.core.sources import find_file
from tell_plugins.preparation import hub
from tell_plugins.preparation.checksums import Checksum
from tell_plugins.preparation.download import (
    DIRECT,
    Places,
    address_of,
    arriving,
    fetch,
    find_named,
    plain_name,
)
from tell_plugins.preparation.made_rows import make_rows, recipe_of
from tell_plugins.preparation.provenance import read_provenance, write_provenance
from tell_plugins.preparation.transfer import shown_url, transfer

_BUILDS_WITH = {"--rebuild", "--thoughts", "--seed"}  # what a card's command may say by itself
_PLAIN_WORD = re.compile(r"[\w.,=+-]+")
_RUNNING: list[str] = []  # build commands, so that one that calls itself comes to an end
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
    blob = card.split(split).blob
    record = read_provenance(path)
    recorded = record is not None and record.get("sha256") == file_sha256(path)
    if blob is not None:
        problem = Checksum("blob", blob).problem(path)
        if problem is None:
            return State(path, "verified", "git blob id")
        if recorded:
            return State(path, "own", "not the official file, taken with --accept")
        return State(path, "wrong", f"not the official file: {problem}")
    if record is not None:
        if recorded and record["from"].get("recipe") != recipe_of(card, split):
            return State(path, "changed", "made by another version of the card")
        if recorded:
            return State(path, "verified", "sha256 as recorded beside it")
        return State(path, "changed", "not the file its provenance describes")
    if path.is_relative_to(paths.SHIPPED):
        return State(path, "project", "part of the project")
    return State(path, "own", "no checksum is known")


def target_of(card: Card, split: str) -> Path:
    """Where the file of a split goes: the card's folder in the first data home."""
    name = plain_name(card.split(split).file, f"card '{card.name}', split '{split}'")
    return paths.data_homes()[0] / card.name / name


@dataclass(frozen=True)
class Options:
    """How files are made ready.

    Attributes:
        data: `./run.sh data` with other words, which build a card's file; returns its exit code.
        hub: the hub to load from; None is the first that the card names.
        accept: take a file whose number of rows is not the card's.
    """

    data: Callable[[list[str]], int]
    places: Places = DIRECT
    hub: str | None = None
    accept: bool = False

    @property
    def elsewhere(self) -> bool:
        """Whether the user names a place to take files from."""
        return bool(self.places.mirror or self.places.folder)


def make_ready(card: Card, split: str, options: Options) -> State:
    """Make the file of a split ready and say what was done.

    Raises UserError or MachineError when it cannot be had. A split that only a command with
    arguments of the user's builds is named and stays missing.
    """
    state = state_of(card, split)
    if state.usable:
        _say(split, state, "is here")
        return state
    spec = card.split(split)
    target = target_of(card, split)
    if spec.url:
        _from_address(card, split, options.places)
    elif spec.made_of:
        make_rows(card, split, target, options.places)
    elif spec.modelscope or spec.huggingface or (options.elsewhere and split in NEEDED):
        _from_hub(card, split, options)
    elif spec.build:
        if not _build(spec.build, options.data):
            print(f"  {split}: is built by  {spec.build}")
            return state
    else:
        raise UserError(
            f"nothing says where '{spec.file}' can be had",
            where=f"card '{card.name}', split '{split}'",
            allowed="url and blob, made_of, modelscope, huggingface, build",
            remedy=f"put the file to {target}",
        )
    state = state_of(card, split)
    if state.path is None:
        raise MachineError(
            f"{spec.build}: was run but made no file '{spec.file}'",
            remedy="run it by hand and see what it says",
        )
    if not state.usable:
        raise _shadowed(state, target)
    _say(split, state, "is ready")
    return state


def _say(split: str, state: State, what: str) -> None:
    print(f"  {split}: {what}, {state.verdict} ({state.why}): {paths.shown(state.path or '')}")


def _shadowed(state: State, target: Path) -> UserError:
    return UserError(
        f"the file is ready at {target}, but another of its name is found before it: {state.why}",
        where=str(state.path),
        remedy="remove that file or give it another name",
    )


def _from_address(card: Card, split: str, places: Places) -> None:
    spec = card.split(split)
    if spec.blob is None:
        raise UserError(
            f"'{spec.file}' has an address but no blob id, so a download could not be verified",
            where=f"card '{card.name}', split '{split}'",
            remedy="add 'blob: ID' to the card; `git hash-object FILE` prints the id",
        )

    def record(part: Path, source: str) -> None:
        origin = {"place": source, "official": spec.url, "git_blob": spec.blob}
        _record(card, split, origin, part, spec.rows)

    fetch(spec.url, Checksum("blob", spec.blob), target_of(card, split), places, record=record)


def _record(card: Card, split: str, origin: dict[str, Any], part: Path, rows: int | None) -> None:
    """Record where the file of a split comes from, which `part` is about to become."""
    facts = {"card": card.name, "split": split, "rows": rows, "licence": card.licence}
    write_provenance(target_of(card, split), origin, part, **facts)


def _from_hub(card: Card, split: str, options: Options) -> None:
    """Rows of a hub, or a file of them from a mirror or a folder, as the card's JSON lines."""
    spec = card.split(split)
    where = f"card '{card.name}', split '{split}'"
    with arriving(target_of(card, split)) as part:
        if state_of(card, split).usable:  # another process was faster
            return
        if options.elsewhere:
            origin = _take_rows(card, split, options.places, part)
        else:
            chosen = hub.hub_of(spec, options.hub, where)
            assert chosen is not None
            origin = hub.load_rows(card, spec, chosen, part)
        rows = _check_rows(card, split, part, options.accept)
        _record(card, split, origin, part, rows)


def _take_rows(card: Card, split: str, places: Places, part: Path) -> dict[str, Any]:
    """Write the card's columns of a file from a mirror or a folder to `part`."""
    name = card.split(split).file
    if places.folder is None:
        address = address_of(None, name, places)
        raw = part.with_name(f".mirrored.{name}")
        try:
            transfer(address, raw, places.patience)
            _copy_rows(card, split, raw, part)
        finally:
            raw.unlink(missing_ok=True)
        return {"place": shown_url(address)}
    found = find_named(places.folder, *(Path(name).stem + ending for ending in FORMATS))
    if not found:
        raise UserError(
            f"no file '{name}' in the folder or below it",
            where=f"--from {places.folder}",
            allowed=f"{Path(name).stem} with ending {', '.join(FORMATS)}",
            remedy="name the folder that has it",
        )
    _copy_rows(card, split, found[0], part)
    return {"place": str(found[0]), "sha256": file_sha256(found[0])}


def _copy_rows(card: Card, split: str, source: Path, part: Path) -> None:
    columns = card.columns_of(split)
    with part.open("w", encoding="utf-8") as file:
        for record in read_records(source):
            value = record.value
            if not isinstance(value, dict) or any(key not in value for key in columns.names):
                raise UserError(
                    record.problem or f"no row with the columns {', '.join(columns.names)}",
                    where=f"{source}, line {record.line}",
                    remedy="name the file of this data set",
                )
            row = {key: value[key] for key in (*columns.names, columns.history) if key in value}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _check_rows(card: Card, split: str, part: Path, accept: bool) -> int:
    """The number of rows. MachineError when it is not the card's and that is not accepted."""
    columns, expected = card.columns_of(split), card.split(split).rows
    rows = usable = 0
    for record in read_records(part):
        rows += 1
        usable += not isinstance(extract(record.value, columns), str)
    if usable == 0 or (expected is not None and rows != expected and not accept):
        raise MachineError(
            f"'{card.split(split).file}' came with {rows:,} rows ({usable:,} usable), "
            f"the card says {expected or 0:,}; nothing was kept\n"
            "  remedy:  another place (--hub, --mirror URL, --from DIR), or --accept to take it "
            "as it is"
        )
    return rows


def _build(command: str, data: Callable[[list[str]], int]) -> bool:
    """Run a build command of a card that needs nothing of the user's; False when it does.

    A card may come from a stranger: a server and its key are named by the user alone.
    """
    words = shlex.split(command)
    options = {word.partition("=")[0] for word in words if word.startswith("-")}
    plain = all(_PLAIN_WORD.fullmatch(word) for word in words[2:])
    if words[:2] != ["./run.sh", "data"] or not plain or not options <= _BUILDS_WITH:
        return False
    if command in _RUNNING:
        return False
    print(f"  building: {command}", flush=True)
    _RUNNING.append(command)
    try:
        code = data(words[2:])
    except (UserError, MachineError) as error:
        raise MachineError(
            f"the build failed: {command}\n{error}", remedy="mend this, then call it again"
        ) from None
    finally:
        _RUNNING.remove(command)
    if code != 0:
        raise MachineError(f"the build failed: {command}", remedy="see the message above")
    return True
