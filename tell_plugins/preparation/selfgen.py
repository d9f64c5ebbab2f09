"""`data selfgen`: general data that a model writes itself, for users who have none.

The model writes instructions from an empty user turn and answers them; what passes the filters
becomes a card of general data. Work is done in fixed batches, each with a seed of its own, and
kept in a journal: a run that was killed goes on and ends with the same file.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tell_plugins.bridge import embedded_model
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import Shape, json_lines
from tell_plugins.core.progress import track
from tell_plugins.core.text import comparison_keys
from tell_plugins.preparation.journal import Journal
from tell_plugins.preparation.known_cards import check_name, make_known
from tell_plugins.preparation.provenance import read_provenance, write_provenance
from tell_plugins.preparation.selfgen_filters import (
    LANGUAGES,
    answer_problem,
    instruction_problem,
)

if TYPE_CHECKING:
    from tell_plugins.preparation.self_writer import Sampling, SelfWriter

TRAIN, JOURNAL = "train.jsonl", "journal.jsonl"
ORIGIN = "model itself"  # what the provenance file names
BATCH = 16
INSTRUCTION = (1.0, 0.9, 160)  # temperature, top_p, tokens
ANSWER = (0.7, 0.9)
LEAST_YIELD = 40  # attempts a row; below that the model does not write instructions
_FIRST_LOOK = 160  # attempts before the yield is judged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `data selfgen`."""
    add = parser.add_argument
    add(
        "--model",
        metavar="M",
        help="a model's folder or hub id, a recipe (its model and template), or 'smollm2'",
    )
    add("--model-type", metavar="T", help="ms-swift's model_type, where it cannot be told")
    add("--template", metavar="T", help="ms-swift's template, where it cannot be told")
    add("--rows", metavar="N", type=int, default=1000, help="rows to write (default: 1000)")
    add("--seed", metavar="S", type=int, default=42, help="same seed, same rows (default: 42)")
    add(
        "--max-new-tokens",
        metavar="N",
        type=int,
        default=512,
        help="longest answer; longer ones are dropped, not cut (default: 512)",
    )
    add("--language", choices=LANGUAGES, default="en", help="language to keep (default: en)")
    add("--drop-refusals", action="store_true", help="keep no answer that refuses or apologises")
    add("--name", metavar="CARD", help="name of the card (default: selfgen_<model>)")
    add("--out", metavar="DIR", help="folder of cards to put it into (default: <data home>/cards)")


def run(args: argparse.Namespace) -> int:
    """Write the rows and their card; 0 when all are there."""
    if args.model is None:
        raise UserError("--model is missing", where="data selfgen", remedy="--model smollm2")
    if args.rows < 1 or args.max_new_tokens < 1:
        raise UserError(
            "a count below 1",
            where="--rows, --max-new-tokens",
            allowed="1 and more",
            remedy="raise it",
        )
    values = model_values(args.model, args.model_type, args.template)
    shown_model = Path(str(values["model"])).name
    folder = _card_folder(args, shown_model)
    from tell_plugins.preparation.self_writer import Sampling

    instruction, answer = Sampling(*INSTRUCTION), Sampling(*ANSWER, args.max_new_tokens)
    settings = {
        "model": shown_model,
        "model_files": fingerprint(str(values["model"])),
        "template": values.get("template"),
        "system": values.get("system"),
        "seed": args.seed,
        "batch": BATCH,
        "instruction": str(instruction),
        "answer": str(answer),
        "language": args.language,
        "drop_refusals": args.drop_refusals,
    }
    with Journal(folder / JOURNAL, settings, _Batch) as journal:
        work = _Work(journal, args, (instruction, answer))
        work.until(args.rows, values)
        return _write_card(folder, work, settings, args)


def model_values(model: str, model_type: str | None, template: str | None) -> dict[str, Any]:
    """ms-swift's keys for a model that is named by folder, hub id, recipe, or as 'smollm2'."""
    if model.endswith((".yaml", ".yml")):
        from tell_plugins.recipe.recipes import load_recipe

        values = dict(load_recipe(model).values)
        if "model" not in values:
            raise UserError("the recipe names no model", where=model, remedy="add 'model: ...'")
    elif model == "smollm2" or paths.user_path(model).resolve() == embedded_model.model_dir():
        folder = embedded_model.prepare_model()
        values = {"model": str(folder), "model_type": "llama", "template": "chatml"}
    else:
        path = paths.user_path(model)
        values = {"model": str(path) if path.exists() else model}
    if model_type:
        values["model_type"] = model_type
    if template:
        values["template"] = template
    return values


def fingerprint(model: str) -> str | None:
    """A hash over a model folder's small files and the sizes of the others; None for a hub id."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.name}|{size}|".encode())
            if size < 10_000_000:
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _card_folder(args: argparse.Namespace, model: str) -> Path:
    name = args.name or "selfgen_" + re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_")
    root = paths.user_target(args.out) if args.out else paths.data_homes()[0] / "cards"
    check_name(name, root, "--name")
    folder = root / name
    there = [path for path in (folder / "card.yaml", folder / TRAIN) if path.exists()]
    if there and not _is_ours(folder):
        raise UserError(
            f"{' and '.join(map(paths.shown, there))} would be overwritten",
            where="--name, --out",
            remedy="choose another name",
        )
    return folder


def _is_ours(folder: Path) -> bool:
    """Whether what lies in the folder was written here before."""
    origin = (read_provenance(folder / TRAIN) or {}).get("from")
    return (folder / JOURNAL).is_file() or (isinstance(origin, dict) and ORIGIN in origin)


class _Attempt(Shape):
    query: str
    response: str | None = None
    problem: str | None


class _Batch(Shape):
    """A record of the journal."""

    batch: int = Field(ge=0)
    attempts: list[_Attempt] = Field(min_length=BATCH, max_length=BATCH)


class _Work:
    """The batches done so far and the rows they gave, in the order of the attempts.

    A batch that is missing among them is done again, as it was done first: only rows of earlier
    batches count as seen.
    """

    def __init__(
        self, journal: Journal, args: argparse.Namespace, sampling: tuple[Sampling, Sampling]
    ) -> None:
        self.journal, self.args = journal, args
        self.instruction, self.answer = sampling
        self.rows: list[dict[str, Any]] = []
        self.dropped: Counter[str] = Counter()
        self.attempts = 0
        self._seen: set[int] = set()
        self._known = {record["batch"]: record for record in journal.records}
        self._take_known()

    def _take_known(self) -> None:
        """Count the batches that were done earlier, up to the first that is missing."""
        while (record := self._known.pop(self.attempts // BATCH, None)) is not None:
            self._note(record)

    def _note(self, record: dict[str, Any]) -> None:
        for entry in record["attempts"]:
            self.attempts += 1
            if entry["problem"] is None:
                self._seen.add(_key(entry["query"]))
                self.rows.append(entry)
            else:
                self.dropped[entry["problem"]] += 1

    def until(self, rows: int, values: Mapping[str, Any]) -> None:
        """Work until there are `rows` rows. The model is loaded only if there is work left."""
        if len(self.rows) >= rows:
            return
        from tell_plugins.preparation.self_writer import SelfWriter

        writer = SelfWriter(values)
        with track(rows, f"{self.journal.header['model']} writes", "rows") as bar:
            bar.update(len(self.rows))
            while len(self.rows) < rows:
                before = len(self.rows)
                batch = self.attempts // BATCH
                record = {"batch": batch, "attempts": self._batch(writer, batch)}
                self.journal.append(record)
                self._note(record)
                self._take_known()
                bar.update(min(rows, len(self.rows)) - before)
                self._judge_yield()

    def _batch(self, writer: SelfWriter, batch: int) -> list[dict[str, Any]]:
        """One batch of attempts: instructions, filters, answers to what is left, filters."""
        from tell_plugins.preparation.self_writer import batch_seed

        seed, language = self.args.seed, self.args.language
        seen = set(self._seen)
        entries: list[dict[str, Any]] = []
        for number, written in enumerate(
            writer.instructions(BATCH, self.instruction, batch_seed(seed, batch, "instruction"))
        ):
            problem = (
                instruction_problem(written.text, language)
                if written.ended
                else "instruction cut off"
            )
            key = _key(written.text)
            if problem is None and key in seen:
                problem = "duplicate"
            if problem is None:
                seen.add(key)
            entries.append(
                {"attempt": batch * BATCH + number, "query": written.text, "problem": problem}
            )
        left = [entry for entry in entries if entry["problem"] is None]
        if left:
            answers = writer.answers(
                [entry["query"] for entry in left], self.answer, batch_seed(seed, batch, "answer")
            )
            for entry, written in zip(left, answers, strict=True):
                entry["response"] = written.text
                entry["problem"] = (
                    answer_problem(written.text, entry["query"], language, self.args.drop_refusals)
                    if written.ended
                    else "answer cut off"
                )
        return entries

    def _judge_yield(self) -> None:
        if self.attempts < _FIRST_LOOK or len(self.rows) * LEAST_YIELD >= self.attempts:
            return
        raise UserError(
            f"only {len(self.rows)} of {self.attempts} attempts are usable ({self.reasons()})",
            where=str(self.args.model),
            remedy="use a model tuned for chat and its own template (--template), "
            "raise --max-new-tokens, or try --language any",
        )

    def reasons(self) -> str:
        return ", ".join(f"{number} {reason}" for reason, number in self.dropped.most_common())


def _key(text: str) -> int:
    return int(comparison_keys([text])[0])


def _write_card(
    folder: Path, work: _Work, settings: dict[str, Any], args: argparse.Namespace
) -> int:
    import yaml

    rows = work.rows[: args.rows]
    sampling = {"instruction": settings["instruction"], "answer": settings["answer"]}
    path = folder / TRAIN
    lines = [
        {
            "query": row["query"],
            "response": row["response"],
            "model": settings["model"],
            "seed": args.seed,
            "attempt": row["attempt"],
            "sampling": sampling,
        }
        for row in rows
    ]
    with paths.atomic_path(path) as temporary:
        temporary.write_text("".join(json_lines(lines)), encoding="utf-8")
        write_provenance(path, {ORIGIN: settings}, temporary, rows=len(rows))
    card = {
        "name": folder.name,
        "kind": "general",
        "summary": f"{len(rows):,} instructions and answers by {settings['model']} itself, "
        "from an empty user turn.",
        "licence": f"output of {settings['model']}; the terms of that model apply",
        "source": f"./run.sh data selfgen --model {settings['model']} --seed {args.seed}",
        "columns": {"query": "query", "response": "response"},
        "splits": {"train": {"file": path.name, "rows": len(rows)}},
    }
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=1000)
    paths.write_text(folder / "card.yaml", text)
    print(f"{len(rows):,} rows of {work.attempts:,} attempts: {paths.shown(path)}")
    if work.dropped:
        print(f"  dropped: {work.reasons()}")
    if export := make_known(folder.parent):
        print(f"  make it known:  {export}")
    print(f"  use it:         tell/<task>:from={folder.name}/general={len(rows)}rows")
    return 0
