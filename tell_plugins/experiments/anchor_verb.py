"""`./run.sh anchor RECIPE --write N`: the model writes its own anchors, the best becomes a file.

Self-written anchors are Appendix A.6. The paper says that the model generates the prompt and not
how one is chosen. Here several candidates are written from different training rows, and each is
scored by the base model's mean loss per response token on other training rows with the candidate
in front. Test rows take no part.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tell_plugins.bridge.protocol import Ask, Decoding, Reply
from tell_plugins.core import draw, paths
from tell_plugins.core.anchors import RESERVED, in_front
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError, at_least
from tell_plugins.core.progress import track, tracked
from tell_plugins.core.shown import table
from tell_plugins.core.sources import open_task
from tell_plugins.core.state_files import write_json
from tell_plugins.core.text import comparison_keys
from tell_plugins.evaluation import elsewhere
from tell_plugins.evaluation.differences import Measure, difference, measure_of
from tell_plugins.evaluation.intervals import Estimate, shown
from tell_plugins.evaluation.prompts import task_card
from tell_plugins.recipe.recipes import load_recipe

NAME = "self_written"
# more various than the paper's sampling: candidates that are all alike leave nothing to choose
DECODING = Decoding("anchor", 0.9, top_k=50, top_p=0.95)
_MAX_NEW_TOKENS = 200
_MAX_CHARS = 900  # of one text of an example in the prompt
_ATTEMPTS = 4  # times the candidates asked for
_QUESTION = (
    "Above are examples of one task: inputs, and the answer that is wanted for each. Write the "
    "instruction that will stand in front of every further input, so that a reader who sees only "
    "this instruction and an input gives an answer of that kind. Say what to do and what form the "
    "answer has. Do not repeat the examples. Write the instruction and nothing else."
)
Row = tuple[str, str, str]  # query, response, query behind the card's own anchor


@dataclass(frozen=True)
class Scored:
    """An anchor and its loss: mean per response token over the scored rows.

    Attributes:
        change: its loss minus that of the card's own anchor over the same rows, paired.
        text, attempt, examples: of a written one, the attempt that gave it, and the numbers of the
            rows that it was written from.
    """

    loss: Estimate
    change: Estimate
    text: str = ""
    attempt: int = 0
    examples: tuple[int, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_flags=True)
    add, count = parser.add_argument, at_least(1)
    add("recipe", help="the recipe whose model writes, for its card")
    add("--write", type=count, required=True, metavar="N", help="candidates")
    add("--seed", type=int, default=42, help="of rows and sampling (default: 42)")
    add("--rows", type=count, default=3, metavar="K", help="rows shown for each (default: 3)")
    text = "other training rows to score on (default: 24)"
    add("--held-out", type=count, default=24, help=text)
    add("--name", default=NAME, help=f"of the anchor file (default: {NAME}; anchor={NAME})")
    add("--overwrite", action="store_true", help="replace an anchor of that name")


def run(args: argparse.Namespace) -> int:
    from tell_plugins.evaluation.engines import make_engine

    recipe = load_recipe(args.recipe, args.flags)
    card = task_card(recipe, "anchor")
    file, record = (card.folder / f"{args.name}.{ending}" for ending in ("txt", "json"))
    _check(args, card, file, record)
    rows = training_rows(card, args.write * args.rows + args.held_out, args.seed)
    engine = make_engine("transformers", recipe, batch_size=1)
    candidates, *usual = write_anchors(
        engine, rows, count=args.write, shown=args.rows, seed=args.seed
    )
    _print(candidates, usual, args.held_out)
    settings = {
        "card": card.name,
        "recipe": recipe.name,
        "model": recipe.get("model"),
        "engine": engine.name,
        "seed": args.seed,
        "rows_shown": args.rows,
        "rows_scored": args.held_out,
        "decoding": asdict(DECODING),
    }
    found = {
        "candidates": [asdict(one) for one in candidates],
        "manual": asdict(usual[0]),
        "none": asdict(usual[1]),
    }
    write_json(record, {"format": 1, **settings, **found})
    paths.write_text(file, candidates[0].text + "\n")
    if len(candidates) < args.write:
        few = f"{len(candidates)} of {args.write} candidates"
        print(f"\n{few}: the model said the same again and again")
    dataset = recipe.spec.with_values(anchor=args.name)
    print(f"\nbest: {paths.shown(file)}; all: {paths.shown(record)}")
    print(f"next: ./run.sh train {paths.shown(recipe.path)} --dataset {dataset}")
    return 0


def _check(args: argparse.Namespace, card: Card, file: Path, record: Path) -> None:
    """Refuse wrong options, and what would be written over, before a model is loaded."""
    taken = {*RESERVED, str(card.anchor).removesuffix(".txt")}
    if args.name in taken or not re.fullmatch(r"[\w.-]+", args.name):
        raise UserError(
            f"'{args.name}' cannot be the name of a further anchor",
            where="--name",
            allowed=f"letters, digits, _ - . and none of {', '.join(sorted(taken))}",
            remedy=f"--name {NAME}",
        )
    is_foreign = record.is_file() and '"candidates"' not in record.read_text(errors="replace")
    if is_foreign or (file.is_file() and not args.overwrite):
        raise UserError(
            f"{paths.shown(record if is_foreign else file)} is there, and may be in use",
            where="--name",
            remedy="another --name; or --overwrite, which replaces an anchor",
        )


def _print(candidates: Sequence[Scored], usual: Sequence[Scored], count: int) -> None:
    print(f"Mean loss per response token on {count} other training rows (lower is better)\n")
    names = [f"candidate {number}" for number in range(1, len(candidates) + 1)]
    rows = []
    for name, scored in zip(
        [*names, "the card's anchor", "no anchor"], [*candidates, *usual], strict=True
    ):
        change = "" if scored is usual[0] else shown(scored.change, 3, sign="+")
        start = textwrap.shorten(scored.text, 70, placeholder="...")
        rows.append([name, shown(scored.loss, 3), change, start])
    print(table(["anchor", "loss [95 %]", "minus the card's", "text"], rows, indent=""))


def training_rows(card: Card, count: int, seed: int) -> list[Row]:
    """The first training rows in a seeded order. Raises UserError when there are too few."""
    plain = open_task(card, "train", "none")
    if len(plain) < count:
        raise UserError(
            f"{count} training rows are needed, to write from and to score on; "
            f"there are {len(plain)}",
            where=f"card '{card.name}'",
            remedy="lower --rows, --held-out or --write",
        )
    order = draw.ranking(plain.ids, seed=seed, source=f"{card.name} anchor")[:count]
    anchored = open_task(card, "train", "card").queries
    return [(plain.queries[i], plain.responses[i], anchored[i]) for i in order]


def write_anchors(
    engine: Any, rows: Sequence[Row], *, count: int, shown: int, seed: int
) -> tuple[list[Scored], Scored, Scored]:
    """`count` candidates, best first, each written from `shown` of the first rows and scored on
    those after them; and the card's own anchor and none.

    Raises UserError when the model writes nothing that could be an anchor.
    """
    examples, scored_on = rows[: count * shown], rows[count * shown :]
    written = _write(engine, examples, count=count, shown=shown, seed=seed)
    if not written:
        raise UserError(
            f"the model wrote no usable text in {_ATTEMPTS * count} attempts",
            where=engine.model_name,
            remedy="another --seed, or write the anchor by hand",
        )
    plain, responses, anchored = zip(*scored_on, strict=True)
    in_turn = ([in_front(text) + query for query in plain] for text, _, _ in written)
    asked = [anchored, plain, *in_turn]
    measures = []
    for queries in tracked(asked, "scoring anchors", "anchors", len(asked)):
        losses = engine.response_losses(list(zip(queries, responses, strict=True)))
        measures.append(measure_of(range(len(plain)), elsewhere.column(losses)))

    def scored(mine: Measure, *written: Any) -> Scored:
        found = difference(mine, measures[0])
        assert found is not None  # the same responses
        return Scored(mine.column.estimate(mine.ids), found, *written)

    candidates = [scored(mine, *one) for mine, one in zip(measures[2:], written, strict=True)]
    candidates.sort(key=lambda candidate: candidate.loss.value or 0.0)  # stable: by attempt
    return candidates, scored(measures[0]), scored(measures[1])


def _write(
    engine: Any, examples: Sequence[Row], *, count: int, shown: int, seed: int
) -> list[tuple[str, int, tuple[int, ...]]]:
    """Texts that differ from one another, with their attempts and the rows that they are from."""
    found: dict[int, tuple[str, int, tuple[int, ...]]] = {}
    with track(count, f"{engine.model_name} writes", "anchors") as bar:
        for attempt in range(_ATTEMPTS * count):
            numbers = tuple((attempt * shown + i) % len(examples) for i in range(shown))
            ask = Ask(DECODING, _MAX_NEW_TOKENS, seed * 1_000_003 + attempt)
            (reply,) = engine.answer([prompt([examples[i] for i in numbers])], ask)
            text = cleaned(reply)
            key = int(comparison_keys([text])[0])
            if text and key not in found:
                found[key] = (text, attempt, numbers)
                bar.update()
            if len(found) == count:
                break
    return list(found.values())


def prompt(examples: Sequence[Row]) -> str:
    """What the model is asked to write an anchor with."""
    parts = [
        f"Input {number}:\n{_short(query)}\n\nAnswer {number}:\n{_short(response)}"
        for number, (query, response, _) in enumerate(examples, 1)
    ]
    return "\n\n".join([*parts, _QUESTION])


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS].rstrip() + " [...]"


def cleaned(reply: Reply) -> str:
    """An answer as an anchor: without fences, heading, quotes around it or control characters.

    One that the limit cut ends at its last whole sentence, if it has one.
    """
    text = "".join(c for c in reply.text if c in "\n\t" or c.isprintable())
    text = text.encode("utf-8", "ignore").decode().strip()
    fenced = re.fullmatch(r"```\w*\n(.*?)\n?```", text, re.DOTALL)
    text = fenced[1].strip() if fenced else text
    text = re.sub(r"^\W{0,3}(?:the )?instruction\W{0,3}:\W{0,3}", "", text, flags=re.IGNORECASE)
    if reply.finish_reason == "length":
        ends = [match.end() for match in re.finditer(r"[.!?:](?=\s)", text)]
        text = text[: ends[-1]] if ends else text
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        text = text[1:-1].strip()
    return text
