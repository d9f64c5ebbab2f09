"""The mixture: task rows with their anchor among general rows, in training order.

This is TELL's data side (Section 3.2): anchor prompt and extensive shuffle. Amounts are drawn
from each source on its own (`draw`), and the order is hashed (`order`).

A row is one line of a source; an entry is a place in training order, so a row that is repeated has
as many entries as copies. Of a row there are two hashes: its `id`, of query and response as they
are, by which it is drawn and ordered; and its `key`, of the query in normal form, by which general
rows that ask what a held-out row asks are found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tell_plugins.core import draw
from tell_plugins.core.cards import HELD_OUT, Card, load_card
from tell_plugins.core.errors import Problems, UserError, raise_all
from tell_plugins.core.order import arrange
from tell_plugins.core.progress import tracked
from tell_plugins.core.rows import Rows
from tell_plugins.core.sources import TaskRows, find_file, lengths_of, open_split, open_task
from tell_plugins.core.spec import ALL, NONE, Amount, Spec
from tell_plugins.core.state_files import write_json_lines
from tell_plugins.core.text import KNOWN, any_of, messages_of
from tell_plugins.core.tokens import TokenCounter, tokenizer_file

TASK, GENERAL = "task", "general"
STEERING = "control_token"  # why a general row is dropped
_MESSAGE = [("role", pa.string()), ("content", pa.string())]
SCHEMA, TURNS_SCHEMA = (
    pa.schema([("messages", pa.list_(pa.struct(message))), ("channel", pa.string())])
    for message in (_MESSAGE, [*_MESSAGE, ("loss", pa.float64())])
)
_BATCH = 1000
_NO_KEYS = np.zeros(0, "<u8")

Mask = npt.NDArray[np.bool_]
Keys = npt.NDArray[np.uint64]


@dataclass
class Drawn:
    """What was taken from one source.

    Attributes:
        rows: all of its rows, those of a task with their anchor.
        used: positions of the rows taken, ranked.
        lengths: (all rows, 2) tokens of query and response; None when not counted.
        held_out: (all rows,) which are held-out queries; None when nothing was checked.
        lost: for each reason, the rows that are dropped for it.
    """

    card: Card
    split: str
    rows: TaskRows | Rows
    used: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64] | None
    held_out: Mask | None
    lost: dict[str, Mask] = field(default_factory=dict)
    repeat: int = 1

    @property
    def role(self) -> str:
        return TASK if isinstance(self.rows, TaskRows) else GENERAL

    @property
    def dropped(self) -> dict[str, int]:
        """How many rows are left out, by reason."""
        malformed = {"malformed": self.rows.bad_count} if self.rows.bad_count else {}
        return malformed | {reason: int(mask.sum()) for reason, mask in self.lost.items()}

    @cached_property
    def duplicates(self) -> int:
        """Rows used that equal another one used."""
        return int((draw.occurrences(self.rows.ids[self.used]) > 0).sum())

    @property
    def overlapping(self) -> int | None:
        """Rows that are held-out queries, dropped or kept; None when nothing was checked."""
        return None if self.held_out is None else int(self.held_out.sum())

    @property
    def overlap_used(self) -> int | None:
        """Such rows among those used, 0 unless overlap=keep."""
        return None if self.held_out is None else int(self.held_out[self.used].sum())

    def tokens(self, rows: Any = None, column: int | None = None) -> int | None:
        """Tokens of the given rows (default: those used, each once); None when not counted."""
        if self.lengths is None:
            return None
        part = self.lengths[self.used if rows is None else rows]
        return int((part if column is None else part[:, column]).sum())


@dataclass
class Mixture:
    """A mixture of task and general rows, entry by entry in training order.

    Attributes:
        row: (n,) the position of each entry's row in its source.
        origin: (n,) the index of its source in `sources`.
        overlap_checked: whether all held-out rows of the card were here to compare with.
    """

    spec: Spec
    card: Card
    sources: list[Drawn]
    row: npt.NDArray[np.int64]
    origin: npt.NDArray[np.int64]
    counter: TokenCounter | None
    overlap_checked: bool

    def __len__(self) -> int:
        return len(self.row)

    @property
    def task(self) -> TaskRows | None:
        """The task rows; None for general rows alone, of a general card or with `task=0`."""
        return next((s.rows for s in self.sources if isinstance(s.rows, TaskRows)), None)

    @cached_property
    def is_task(self) -> Mask:
        """(n,) whether the entry is a task row."""
        return np.array([s.role == TASK for s in self.sources], bool)[self.origin]

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64] | None:
        """(n, 2) tokens of query and response; None when not counted."""
        known = [source.lengths for source in self.sources if source.lengths is not None]
        return self.of_entries(known) if known else None

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the rows as the model sees them, in training order, with their channel."""
        records = np.zeros(len(self), np.dtype([("role", "u1"), ("id", "u1", 16)]))
        records["role"] = self.is_task
        records["id"] = self.of_entries([source.rows.seen_ids for source in self.sources])
        return hashlib.sha256(records.tobytes()).hexdigest()

    def of_entries(self, of_rows: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """(n, ...) in training order, from what is known of all rows of each source."""
        result = np.zeros((len(self), *of_rows[0].shape[1:]), of_rows[0].dtype)
        for index, known in enumerate(of_rows):
            mine = self.origin == index
            result[mine] = known[self.row[mine]]
        return result

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows in training order as ms-swift reads them from JSON lines."""
        channels = iter(self.channels)
        for start in range(0, len(self), _BATCH):
            part = slice(start, start + _BATCH)
            origins, rows = self.origin[part], self.row[part]
            texts = [
                iter(source.rows.texts(rows[origins == number]))
                for number, source in enumerate(self.sources)
            ]
            for number in origins.tolist():
                query, response = next(texts[number])
                messages = [*messages_of(query), {"role": "assistant", "content": response}]
                yield {"messages": messages, "channel": next(channels)}

    @property
    def channels(self) -> list[str]:
        """The channel of each row, in training order: `task`, `general`, or `general_<card>`."""
        several = sum(s.role == GENERAL and len(s.used) > 0 for s in self.sources) > 1
        names = [f"{GENERAL}_{s.card.name}" if several else GENERAL for s in self.sources]
        names = [TASK if s.role == TASK else n for s, n in zip(self.sources, names, strict=True)]
        return [names[source] for source in self.origin.tolist()]

    def write_arrow(self, path: Path) -> None:
        """Write the rows as an Arrow stream; with a loss of each message where rows have turns."""
        turns = any(source.card.has_turns(source.split) for source in self.sources)
        schema, rows = TURNS_SCHEMA if turns else SCHEMA, self.rows()
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            while batch := list(islice(rows, _BATCH)):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))

    def write_json_lines(self, path: Path) -> None:
        """Write the rows as JSON lines, in one piece."""
        rows = tracked(self.rows(), f"writing {path.name}", "rows", len(self))
        write_json_lines(path, rows)


# --- building one


def build_mixture(spec: Spec, card: Card | None = None) -> Mixture:
    """Build the mixture that `spec` describes; `card` is the one it names, if it is loaded.

    `task=0` gives exactly the general rows of the mixture that the same string describes with any
    other amount: the baseline of general data alone. Raises UserError for whatever the user can
    mend: unknown cards, missing files, malformed task rows, too little data, task rows that are
    test rows.
    """
    card = card or load_card(spec.card)
    if card.kind == GENERAL:
        return _general_alone(spec, card)
    for name in spec.splits:
        card.split(name)
    amount, names = spec.general_of(card)
    refuse_times_nothing(spec, amount, where=str(spec))
    for name in spec.sources or ():  # a typo shows in any case
        general_card(name)
    cards = [general_card(name) for name in names]
    task = open_task(card, spec.split, spec.anchor) if spec.task != NONE else None
    counter = counter_for(spec, [spec.task, amount], cards)
    held_out, checked = _held_out(card, spec)
    drawn: list[Drawn] = []
    if task is not None:
        _refuse_held_out_rows(task, held_out)
        drawn.append(draw_task(task, spec, counter))
    questions = None
    if held_out or checked:
        questions = np.concatenate([_NO_KEYS, *(part.question_keys for part in held_out)])
    entries = sum(len(source.used) * source.repeat for source in drawn)
    for general, share in zip(cards, _shares(amount, len(cards), entries), strict=True):
        drawn.append(_draw_general(general, share, spec, counter, questions))
    return _assemble(spec, card, drawn, counter, checked)


def _general_alone(spec: Spec, card: Card) -> Mixture:
    """A general card named as the data set: its rows alone, `task` being its amount."""
    refuse_measuring(card, str(spec))
    if spec.with_values(split="train", task=ALL, seed=42, overlap="drop") != Spec(card.name):
        raise UserError(
            f"'{card.name}' is general data: it has no anchor, order, copies or general part",
            where=str(spec),
            allowed="split, task (the amount of its rows), seed",
            remedy="remove the other keys, or name a task card",
        )
    counter = counter_for(spec, [spec.task], [card])
    source = _draw_general(card, spec.task, spec, counter, None, split=spec.split)
    return _assemble(spec, card, [source], counter, checked=False)


def refuse_times_nothing(spec: Spec, amount: Amount, *, where: str) -> None:
    """Raise UserError where general rows are counted by task rows and there are none."""
    if spec.task == NONE and amount.unit == "x":
        raise UserError(
            f"'{amount}' the task rows is nothing, since task=0 takes none",
            where=f"{where}, key 'general'",
            allowed="0, all, 2000rows, 4e6tok",
            remedy="say the amount in rows or tokens, general=2000rows",
        )


def general_card(name: str, where: str = "key 'from'") -> Card:
    """The card of that name. Raises UserError when there is none, or none to train on."""
    card = load_card(name)
    if card.kind != GENERAL:
        found, remedy = f"card '{name}' is task data", "name general cards only"
        raise UserError(found, where=where, remedy=remedy)
    refuse_measuring(card, where)
    return card


def refuse_measuring(card: Card, where: str) -> None:
    """Raise UserError for a card that forgetting is measured on: it has nothing to train on."""
    if "train" not in card.splits:
        raise UserError(
            f"the rows of card '{card.name}' never train: forgetting is measured on them",
            where=where,
            remedy="name a general card with a split 'train'",
        )


def counter_for(spec: Spec, amounts: list[Amount], cards: list[Card]) -> TokenCounter | None:
    """What counts tokens; None without a tokenizer. Raises UserError where one is needed."""
    path = tokenizer_file()
    if path is not None:
        return TokenCounter(path)
    reasons = [f"amount '{amount}'" for amount in amounts if amount.unit == "tok"]
    reasons += [f"'max_tokens' of card '{card.name}'" for card in cards if card.max_tokens]
    if reasons:
        raise UserError(
            f"{reasons[0]} needs a tokenizer to count with, and none is here",
            where=str(spec),
            remedy="./run.sh data llama2_tokenizer, or set $TELL_TOKENIZER to a tokenizer.json",
        )
    return None


def _held_out(card: Card, spec: Spec) -> tuple[list[TaskRows], bool]:
    """The held-out splits that training rows must not meet, and whether all of them are here."""
    if spec.split in HELD_OUT:
        return [], True
    names = [name for name in HELD_OUT if name in card.splits]
    missing = [name for name in names if find_file(card, name) is None]
    if missing and spec.overlap == "drop":
        raise UserError(
            f"split '{missing[0]}' is not here, so nothing can tell whether test rows are trained "
            "on",
            where=f"card '{card.name}'",
            remedy=f"./run.sh data {card.name}   (or overlap=keep to train without that check)",
        )
    here = [name for name in names if name not in missing]
    return [open_task(card, name, spec.anchor) for name in here], not missing


def _refuse_held_out_rows(task: TaskRows, held_out: list[TaskRows]) -> None:
    problems = Problems()
    for other in held_out:
        both = np.flatnonzero(np.isin(task.query_keys, other.query_keys))
        if len(both):
            twin = int(np.flatnonzero(other.query_keys == task.query_keys[both[0]])[0])
            found = (
                f"{len(both)} task rows are {other.split} rows, "
                f"the first is the one at line {other.lines[twin]} of {other.files[0].name}"
            )
            remedy = f"remove them from one of the two files: {other.split} rows never train"
            problems.append(UserError(found, where=task.place(int(both[0])), remedy=remedy))
    raise_all(problems)


def _shares(amount: Amount, sources: int, task_entries: int) -> list[Amount]:
    """An amount in equal parts over several general sources."""
    if amount.unit == "all":
        return [ALL] * sources
    if amount.unit == "x":
        amount = Amount("rows", round(amount.number * task_entries))
    number = int(amount.number)
    return [Amount(amount.unit, (number + sources - 1 - n) // sources) for n in range(sources)]


def draw_task(task: TaskRows, spec: Spec, counter: TokenCounter | None) -> Drawn:
    """The task rows that `spec` takes. Raises UserError where there are too few."""
    ranked = draw.ranking(task.ids, seed=spec.seed, source=task.card.name)
    lengths = lengths_of(task, counter)
    tokens = None if lengths is None else lengths.sum(axis=1)
    used = draw.take(spec.task, ranked, tokens, source=f"task data '{task.card.name}'")
    nothing = np.zeros(len(task), bool)
    return Drawn(task.card, spec.split, task, used, lengths, nothing, repeat=spec.repeat)


def _draw_general(
    card: Card,
    amount: Amount,
    spec: Spec,
    counter: TokenCounter | None,
    questions: Keys | None,
    split: str = "train",
) -> Drawn:
    """Draw from a general card; `questions` are the keys of held-out queries, None if unknown.

    Rows that ask what a row of the card's own split `heldout` asks never train, whatever
    `overlap` says: forgetting is measured on those.
    """
    rows = open_split(card, split)
    lengths = lengths_of(rows, counter)
    tokens = None if lengths is None else lengths.sum(axis=1)
    overlapping = None if questions is None else np.isin(rows.keys, questions)
    reasons = {"held_out_row": np.isin(rows.keys, _measured_keys(card, split))}
    if spec.overlap == "drop" and overlapping is not None:
        reasons["held_out_query"] = overlapping
    reasons[STEERING] = rows.holding(any_of(KNOWN))
    if card.max_tokens is not None and tokens is not None:
        reasons["over_max_tokens"] = tokens > card.max_tokens
    usable, lost = np.ones(len(rows), bool), {}
    for reason, mask in reasons.items():  # a row is lost for the first of them
        if (usable & mask).any():
            lost[reason] = usable & mask
            usable &= ~mask
    ranked = draw.ranking(rows.ids, seed=spec.seed, source=card.name)
    used = draw.take(amount, ranked[usable[ranked]], tokens, source=f"general data '{card.name}'")
    return Drawn(card, split, rows, used, lengths, overlapping, lost)


def _measured_keys(card: Card, split: str) -> Keys:
    """The keys of what the card's split `heldout` asks; none where it is not on this machine."""
    name = "heldout"
    if split in HELD_OUT or name not in card.splits or find_file(card, name) is None:
        return _NO_KEYS
    return open_split(card, name).keys


def _assemble(
    spec: Spec, card: Card, sources: list[Drawn], counter: TokenCounter | None, checked: bool
) -> Mixture:
    """Every copy of every row drawn as an entry, in the order that the string asks for."""
    if not any(len(source.used) for source in sources):
        raise UserError("the mixture is empty", where=str(spec), remedy="ask for at least one row")
    rows, origins, hashes = [], [], []
    for index, source in enumerate(sources):
        nth = draw.occurrences(source.rows.ids)[source.used]
        for copy in range(source.repeat):
            hashes.append(
                draw.hashes(
                    source.rows.ids[source.used],
                    nth,
                    seed=spec.seed,
                    source=source.card.name,
                    purpose=f"order, copy {copy}" if copy else "order",
                )
            )
            rows.append(source.used)
            origins.append(np.full(len(source.used), index, np.int64))
    task_rows = len(sources[0].used) if sources[0].role == TASK else 0
    joined, count = np.concatenate(hashes), task_rows * sources[0].repeat
    order = arrange(spec.order, joined[:count], joined[count:], task_rows=task_rows)
    row, origin = (np.concatenate(parts)[order] for parts in (rows, origins))
    return Mixture(spec, card, sources, row, origin, counter, checked)
