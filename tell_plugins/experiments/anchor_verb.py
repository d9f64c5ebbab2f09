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
from tell_plugins.core.sources import open_task
from tell_plugins.core.state_files import write_json
from tell_plugins.core.text import comparison_keys
from tell_plugins.evaluation import elsewhere
from tell_plugins.evaluation.differences import Measure, difference, measure_of
from tell_plugins.evaluation.intervals import Estimate, shown
from tell_plugins.evaluation.prompts import task_card
from tell_plugins.recipe.recipes import load_recipe
from tell_plugins.recipe.tables import table

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
Pair = tuple[str, str]


@dataclass(frozen=True)
class TrainingRows:
    """Plain training rows in a seeded order: those to write from, and those to score on.

    Attributes:
        manual: the scored rows' queries with the card's own anchor.
    """

    examples: list[Pair]
    scored: list[Pair]
    manual: list[str]


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


@dataclass(frozen=True)
class Writing:
    """All candidates, best first, with the card's anchor and no anchor beside them."""

    candidates: list[Scored]
    manual: Scored
    none: Scored


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_flags=True)
    parser.add_argument("recipe", help="the recipe whose model writes, for its card")
    count = at_least(1)
    parser.add_argument("--write", type=count, required=True, metavar="N", help="candidates")
    parser.add_argument("--seed", type=int, default=42, help="of rows and sampling (default: 42)")
    parser.add_argument(
        "--rows", type=count, default=3, metavar="K", help="rows shown for each (default: 3)"
    )
    parser.add_argument(
        "--held-out", type=count, default=24, help="other training rows to score on (default: 24)"
    )
    parser.add_argument(
        "--name", default=NAME, help=f"of the anchor file (default: {NAME}; anchor={NAME})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an anchor of that name")


def run(args: argparse.Namespace) -> int:
    from tell_plugins.evaluation.engines import make_engine

    recipe = load_recipe(args.recipe, args.flags)
    card = task_card(recipe, "anchor")
    file, record = (card.folder / f"{args.name}.{ending}" for ending in ("txt", "json"))
    _check(args, card, file, record)
    rows = training_rows(
        card, examples=args.write * args.rows, scored=args.held_out, seed=args.seed
    )
    engine = make_engine("transformers", recipe, batch_size=1)
    writing = write_anchors(engine, rows, count=args.write, shown=args.rows, seed=args.seed)
    _print(writing, len(rows.scored))
    asked = {"seed": args.seed, "rows_shown": args.rows, "rows_scored": args.held_out}
    model = {"recipe": recipe.name, "model": recipe.get("model"), "engine": engine.name}
    settings = {"card": card.name, **model, **asked, "decoding": asdict(DECODING)}
    write_json(record, {"format": 1, **settings, **asdict(writing)})
    paths.write_text(file, writing.candidates[0].text + "\n")
    if len(writing.candidates) < args.write:
        few = f"{len(writing.candidates)} of {args.write} candidates"
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
    if record.is_file() and '"candidates"' not in record.read_text(errors="replace"):
        raise UserError(
            "a file of that name is here, and no record of written anchors",
            where=paths.shown(record),
            remedy=f"another --name, such as {NAME}",
        )
    if file.is_file() and not args.overwrite:
        raise UserError(
            "there is another anchor of that name, which recipes may use",
            where=paths.shown(file),
            remedy="--overwrite, or another --name",
        )


def _print(writing: Writing, count: int) -> None:
    print(f"Mean loss per response token on {count} other training rows (lower is better)\n")
    named = [(f"candidate {i}", c) for i, c in enumerate(writing.candidates, 1)]
    named += [("the card's anchor", writing.manual), ("no anchor", writing.none)]
    rows = []
    for name, scored in named:
        change = "" if scored is writing.manual else shown(scored.change, 3, sign="+")
        start = textwrap.shorten(scored.text, 70, placeholder="...")
        rows.append([name, shown(scored.loss, 3), change, start])
    print(table(["anchor", "loss [95 %]", "minus the card's", "text"], rows, indent=""))


def training_rows(card: Card, *, examples: int, scored: int, seed: int) -> TrainingRows:
    """Draw rows of the training split. Raises UserError when there are too few."""
    plain = open_task(card, "train", "none")
    needed = examples + scored
    if len(plain) < needed:
        raise UserError(
            f"{needed} training rows are needed ({examples} to write from, {scored} to score on), "
            f"there are {len(plain)}",
            where=f"card '{card.name}'",
            remedy="lower --rows, --held-out or --write",
        )
    order = draw.ranking(plain.ids, seed=seed, source=f"{card.name} anchor")[:needed]
    pairs = [(plain.queries[i], plain.responses[i]) for i in order]
    manual = open_task(card, "train", "card").queries
    return TrainingRows(pairs[:examples], pairs[examples:], [manual[i] for i in order[examples:]])


def write_anchors(engine: Any, rows: TrainingRows, *, count: int, shown: int, seed: int) -> Writing:
    """Write `count` candidates, each from `shown` rows, and rank them.

    Raises UserError when the model writes nothing that could be an anchor.
    """
    written = _write(engine, rows.examples, count=count, shown=shown, seed=seed)
    if not written:
        raise UserError(
            f"the model wrote no usable text in {_ATTEMPTS * count} attempts",
            where=engine.model_name,
            remedy="another --seed, or write the anchor by hand",
        )
    plain, responses = zip(*rows.scored, strict=True)
    in_turn = ([in_front(text) + query for query in plain] for text, _, _ in written)
    asked = [rows.manual, plain, *in_turn]
    columns = [
        elsewhere.column(engine.response_losses(list(zip(queries, responses, strict=True))))
        for queries in tracked(asked, "scoring anchors", "anchors", len(asked))
    ]
    measures = [measure_of(range(len(plain)), column) for column in columns]

    def scored(mine: Measure, *written: Any) -> Scored:
        found = difference(mine, measures[0])
        assert found is not None  # the same responses
        return Scored(mine.column.estimate(mine.ids), found, *written)

    candidates = [scored(mine, *one) for mine, one in zip(measures[2:], written, strict=True)]
    candidates.sort(key=lambda candidate: candidate.loss.value or 0.0)  # stable: by attempt
    return Writing(candidates, manual=scored(measures[0]), none=scored(measures[1]))


def _write(
    engine: Any, examples: list[Pair], *, count: int, shown: int, seed: int
) -> list[tuple[str, int, tuple[int, ...]]]:
    """Texts that differ from one another, with their attempts and the rows that they are from."""
    found: dict[int, tuple[str, int, tuple[int, ...]]] = {}
    with track(count, f"{engine.model_name} writes", "anchors") as bar:
        for attempt in range(_ATTEMPTS * count):
            numbers = tuple((attempt * shown + i) % len(examples) for i in range(shown))
            ask = Ask(DECODING, _MAX_NEW_TOKENS, seed * 1_000_003 + attempt)
            (reply,) = engine.answer([prompt([examples[i] for i in numbers])], ask)
            text = cleaned(reply)
            key = int(comparison_keys([text])[0]) if text else 0
            if text and key not in found:
                found[key] = (text, attempt, numbers)
                bar.update()
            if len(found) == count:
                break
    return list(found.values())


def prompt(examples: Sequence[Pair]) -> str:
    """What the model is asked to write an anchor with."""
    parts = [
        f"Input {number}:\n{_short(query)}\n\nAnswer {number}:\n{_short(response)}"
        for number, (query, response) in enumerate(examples, 1)
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
