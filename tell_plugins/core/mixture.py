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
from tell_plugins.core.errors import UserError, raise_all
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
SCHEMA = pa.schema(
    [
        (
            "messages",
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
        ),
        ("channel", pa.string()),
    ]
)
_WITH_LOSS = pa.struct([("role", pa.string()), ("content", pa.string()), ("loss", pa.float64())])
TURNS_SCHEMA = pa.schema([("messages", pa.list_(_WITH_LOSS)), ("channel", pa.string())])
_BATCH = 1000


Mask = npt.NDArray[np.bool_]


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
    lengths: npt.NDArray[np.uint32] | None
    held_out: Mask | None
    lost: dict[str, Mask] = field(default_factory=dict)
    repeat: int = 1

    @property
    def role(self) -> str:
        return TASK if isinstance(self.rows, TaskRows) else GENERAL

    @cached_property
    def dropped(self) -> dict[str, int]:
        """How many rows are left out, by reason."""
        malformed = self.rows.bad_count
        counts = {reason: int(mask.sum()) for reason, mask in self.lost.items()}
        return ({"malformed": malformed} if malformed else {}) | counts

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
    """A mixture of task and general rows; entries count copies, task entries come first.

    Attributes:
        order: (n,) permutation of the entries, the training order.
        row: (n,) for each entry, the position of its row in its source.
        origin: (n,) for each entry, the index of its source in `sources`.
    """

    spec: Spec
    card: Card
    sources: list[Drawn]
    order: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    origin: npt.NDArray[np.int64]
    counter: TokenCounter | None
    overlap_checked: bool

    def __len__(self) -> int:
        return len(self.order)

    @property
    def task(self) -> TaskRows | None:
        """The task rows; None for general rows alone, of a general card or with `task=0`."""
        return next((s.rows for s in self.sources if isinstance(s.rows, TaskRows)), None)

    @cached_property
    def is_task(self) -> Mask:
        """(n,) in training order: whether the entry is a task row."""
        return np.array([s.role == TASK for s in self.sources], bool)[self.origin[self.order]]

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64] | None:
        """(n, 2) in training order: tokens of query and response; None when not counted."""
        if self.counter is None:
            return None
        return self._of_entries([np.asarray(s.lengths, np.int64) for s in self.sources])

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the rows as the model sees them, in training order, with their channel."""
        records = np.zeros(len(self), np.dtype([("role", "u1"), ("id", "u1", 16)]))
        records["role"] = self.is_task
        records["id"] = self._of_entries([s.rows.seen_ids for s in self.sources])
        return hashlib.sha256(records.tobytes()).hexdigest()

    def _of_entries(self, of_rows: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """(n, ...) in training order, from what is known of all rows of each source."""
        pairs = enumerate(of_rows)
        parts = np.concatenate([known[self.row[self.origin == index]] for index, known in pairs])
        return parts[self.order]  # entries lie source by source

    @cached_property
    def schema(self) -> pa.Schema:
        """What the rows are as Arrow; with a loss of each message where rows have earlier turns."""
        turns = any(source.card.has_turns(source.split) for source in self.sources)
        return TURNS_SCHEMA if turns else SCHEMA

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows in training order as ms-swift reads them from JSON lines."""
        names = self._channel_names
        for start in range(0, len(self), _BATCH):
            entries = self.order[start : start + _BATCH]
            origins, rows = self.origin[entries], self.row[entries]
            texts = [
                iter(source.rows.texts(rows[origins == number]))
                for number, source in enumerate(self.sources)
            ]
            for number in origins.tolist():
                query, response = next(texts[number])
                messages = [*messages_of(query), {"role": "assistant", "content": response}]
                yield {"messages": messages, "channel": names[number]}

    @property
    def channels(self) -> list[str]:
        """The channel of each row, in training order: `task`, `general`, or `general_<card>`."""
        names = self._channel_names
        return [names[source] for source in self.origin[self.order].tolist()]

    @property
    def _channel_names(self) -> list[str]:
        several = sum(s.role == GENERAL and len(s.used) > 0 for s in self.sources) > 1
        return [
            TASK if s.role == TASK else f"{GENERAL}_{s.card.name}" if several else GENERAL
            for s in self.sources
        ]

    def write_arrow(self, path: Path) -> None:
        """Write the rows as an Arrow stream."""
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, self.schema) as writer:
            rows = self.rows()
            while batch := list(islice(rows, _BATCH)):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=self.schema))

    def write_json_lines(self, path: Path) -> None:
        """Write the rows as JSON lines, in one piece."""
        rows = tracked(self.rows(), f"writing {path.name}", "rows", len(self))
        write_json_lines(path, rows)


def build_mixture(spec: Spec, card: Card | None = None) -> Mixture:
    """Build the mixture that `spec` describes; `card` is the one it names, if it is loaded.

    `task=0` gives exactly the general rows of the mixture that the same string describes with any
    other amount: the baseline of general data alone. Raises UserError for whatever the user can
    mend: unknown cards, missing files, malformed task rows, too little data, task rows that are
    test rows.
    """
    card = card or load_card(spec.card)
    if card.kind == GENERAL:
        refuse_measuring(card, str(spec))
        return _build_general_only(spec, card)
    for name in spec.splits:
        card.split(name)
    training = spec.split not in HELD_OUT
    amount, names = spec.general_of(card)
    refuse_times_nothing(spec, amount, where=str(spec))
    for name in spec.sources or ():  # a typo shows in any case
        general_card(name)
    cards = [general_card(name) for name in names]
    task = open_task(card, spec.split, spec.anchor) if spec.task != NONE else None
    counter = counter_for(spec, [spec.task, amount], cards)
    held_out, checked = _held_out(card, spec) if training else ([], True)
    drawn: list[Drawn] = []
    if task is not None:
        _refuse_held_out_rows(task, held_out)
        drawn.append(draw_task(task, spec, counter))
    entries = sum(len(source.used) * source.repeat for source in drawn)
    questions = None
    if held_out or checked:
        keys = [part.question_keys for part in held_out]
        questions = np.unique(np.concatenate(keys or [np.zeros(0, "<u8")]))
    for source, share in zip(cards, _shares(amount, len(cards), entries), strict=True):
        drawn.append(_draw_general(source, share, spec, counter, questions))
    return _assemble(spec, card, drawn, counter, checked)


def _build_general_only(spec: Spec, card: Card) -> Mixture:
    """A general card named as the data set: its rows alone, `task` being its amount."""
    mixed = spec.general or spec.sources or spec.kl or spec.anchor != "card"
    if mixed or spec.repeat != 1 or spec.order != "shuffle":
        raise UserError(
            f"'{card.name}' is general data: it has no anchor, order, copies or general part",
            where=str(spec),
            allowed="split, task (the amount of its rows), seed",
            remedy="remove the other keys, or name a task card",
        )
    amount = spec.task
    counter = counter_for(spec, [amount], [card])
    source = _draw_general(card, amount, spec, counter, None, split=spec.split)
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
        raise UserError(
            f"card '{name}' is task data",
            where=where,
            allowed="cards of kind 'general'",
            remedy="name general cards only",
        )
    refuse_measuring(card, where)
    return card


def refuse_measuring(card: Card, where: str) -> None:
    """Raise UserError for a card that forgetting is measured on: it has nothing to train on."""
    if "train" not in card.splits:
        raise UserError(
            f"the rows of card '{card.name}' never train: forgetting is measured on them",
            where=where,
            allowed="general cards with a split 'train'",
            remedy="name another general card",
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
    """The held-out splits of the card, and whether all of them are on this machine."""
    names = [name for name in HELD_OUT if name in card.splits]
    here = [name for name in names if find_file(card, name)]
    if here != names and spec.overlap == "drop":
        missing = next(name for name in names if name not in here)
        raise UserError(
            f"split '{missing}' is not here, so nothing can tell whether test rows are trained on",
            where=f"card '{card.name}'",
            remedy=f"./run.sh data {card.name}   (or overlap=keep to train without that check)",
        )
    return [open_task(card, name, spec.anchor) for name in here], here == names


def _refuse_held_out_rows(task: TaskRows, held_out: list[TaskRows]) -> None:
    problems = []
    for other in held_out:
        places = {int(key): row for row, key in reversed(list(enumerate(other.query_keys)))}
        both = [
            (row, places[int(key)]) for row, key in enumerate(task.query_keys) if int(key) in places
        ]
        if both:
            row, twin = both[0]
            problems.append(
                UserError(
                    f"{len(both)} task rows are {other.split} rows, "
                    f"the first is the one at line {other.lines[twin]} of {other.files[0].name}",
                    where=task.place(row),
                    remedy=f"remove them from one of the two files: {other.split} rows never train",
                )
            )
    raise_all(problems)


def _shares(amount: Amount, sources: int, task_entries: int) -> list[Amount]:
    """An amount in equal parts over several general sources."""
    if sources == 0:
        return []
    if amount.unit == "all":
        return [ALL] * sources
    if amount.unit == "x":
        amount = Amount("rows", round(amount.number * task_entries))
    whole = int(amount.number)
    return [
        Amount(amount.unit, whole // sources + (index < whole % sources))
        for index in range(sources)
    ]


def _sums(lengths: npt.NDArray[np.uint32] | None) -> npt.NDArray[np.int64] | None:
    return None if lengths is None else lengths.sum(axis=1, dtype=np.int64)


def draw_task(task: TaskRows, spec: Spec, counter: TokenCounter | None) -> Drawn:
    """The task rows that `spec` takes. Raises UserError where there are too few."""
    ranked = draw.ranking(task.ids, seed=spec.seed, source=task.card.name)
    lengths = lengths_of(task, counter)
    used = draw.take(spec.task, ranked, _sums(lengths), source=f"task data '{task.card.name}'")
    nothing = np.zeros(len(task), bool)
    return Drawn(task.card, spec.split, task, used, lengths, nothing, repeat=spec.repeat)


def _draw_general(
    card: Card,
    amount: Amount,
    spec: Spec,
    counter: TokenCounter | None,
    questions: npt.NDArray[np.uint64] | None,
    split: str = "train",
) -> Drawn:
    """Draw from a general card; `questions` are the keys of held-out queries, None if unknown.

    Rows that ask what a row of the card's own split `heldout` asks never train, whatever
    `overlap` says: forgetting is measured on those.
    """
    rows = open_split(card, split)
    lengths = lengths_of(rows, counter)
    overlapping = None if questions is None else np.isin(rows.keys, questions)
    usable = np.ones(len(rows), bool)
    lost: dict[str, Mask] = {}

    def leave_out(reason: str, mask: Mask) -> None:
        mask = usable & mask
        if mask.any():
            lost[reason] = mask
            usable[mask] = False

    leave_out("held_out_row", np.isin(rows.keys, _held_out_keys(card, split)))
    if spec.overlap == "drop" and overlapping is not None:
        leave_out("held_out_query", overlapping)
    leave_out(STEERING, rows.holding(any_of(KNOWN)))
    if card.max_tokens is not None and lengths is not None:
        leave_out("over_max_tokens", lengths.sum(axis=1) > card.max_tokens)
    ranked = draw.ranking(rows.ids, seed=spec.seed, source=card.name)
    ranked = ranked[usable[ranked]]
    used = draw.take(amount, ranked, _sums(lengths), source=f"general data '{card.name}'")
    return Drawn(card, split, rows, used, lengths, overlapping, lost)


def _held_out_keys(card: Card, split: str) -> npt.NDArray[np.uint64]:
    """The keys of what the card's split `heldout` asks; none where it is not on this machine."""
    name = "heldout"
    if split in HELD_OUT or name not in card.splits or find_file(card, name) is None:
        return np.zeros(0, "<u8")
    return open_split(card, name).keys


def _assemble(
    spec: Spec,
    card: Card,
    sources: list[Drawn],
    counter: TokenCounter | None,
    checked: bool,
) -> Mixture:
    if not any(len(source.used) for source in sources):
        raise UserError("the mixture is empty", where=str(spec), remedy="ask for at least one row")
    rows, origins, keys = [], [], []
    for index, source in enumerate(sources):
        ids = source.rows.ids
        ids, nth = ids[source.used], draw.occurrences(ids)[source.used]
        for copy in range(source.repeat):
            purpose = "order" if copy == 0 else f"order, copy {copy}"
            keys.append(
                draw.hashes(ids, nth, seed=spec.seed, source=source.card.name, purpose=purpose)
            )
            rows.append(source.used)
            origins.append(np.full(len(source.used), index, np.int64))
    task_rows = sum(len(source.used) for source in sources if source.role == TASK)
    split_at = task_rows * sources[0].repeat
    joined = np.concatenate(keys)
    order = arrange(spec.order, joined[:split_at], joined[split_at:], task_rows=task_rows)
    row, origin = np.concatenate(rows), np.concatenate(origins)
    return Mixture(spec, card, sources, order, row, origin, counter, overlap_checked=checked)
