"""Self-written anchors (Appendix A.6): the model to be trained writes its own, the loss chooses.

The paper says that the model generates the prompt and not how one is chosen. Here several
candidates are written from different training rows, and each is scored by the base model's mean
loss per response token on other training rows with the candidate in front. Test rows take no part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tell_plugins.bridge.protocol import Decoding, Reply
from tell_plugins.core import draw
from tell_plugins.core.anchors import in_front
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.core.progress import track
from tell_plugins.core.sources import open_task
from tell_plugins.core.text import comparison_keys
from tell_plugins.evaluation import retention
from tell_plugins.evaluation.intervals import Estimate, Interval

# more various than the paper's sampling: candidates that are all alike leave nothing to choose
DECODING = Decoding("anchor", 0.9, top_k=50, top_p=0.95)
_MAX_NEW_TOKENS = 200
_MAX_CHARS = 900  # of one text of an example in the prompt
_AT_ONCE = 16  # rows that are scored together
_ATTEMPTS = 4  # times the candidates asked for
_QUESTION = (
    "Above are examples of one task: inputs, and the answer that is wanted for each. Write the "
    "instruction that will stand in front of every further input, so that a reader who sees only "
    "this instruction and an input gives an answer of that kind. Say what to do and what form the "
    "answer has. Do not repeat the examples. Write the instruction and nothing else."
)


class WritingEngine(Protocol):
    """What writes and scores: a model on this machine."""

    name: str
    model_name: str

    def answer(
        self, prompts: Sequence[str], decoding: Decoding, *, max_new_tokens: int, seed: int
    ) -> list[Reply]: ...

    def response_losses(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]: ...


@dataclass(frozen=True)
class TrainingRows:
    """Plain training rows in a seeded order: those to write from, and those to score on.

    Attributes:
        manual: the scored rows' queries with the card's own anchor.
    """

    examples: list[tuple[str, str]]
    scored: list[tuple[str, str]]
    manual: list[str]


@dataclass(frozen=True)
class Scored:
    """An anchor and its loss: mean per response token over the scored rows, 95 % interval.

    `change` is the loss minus that of the card's own anchor over the same rows (paired).
    `examples` are the numbers of the rows it was written from.
    """

    text: str
    loss: Estimate
    tokens: int
    change: Interval
    attempt: int | None = None
    examples: tuple[int, ...] = ()


@dataclass(frozen=True)
class Writing:
    """All candidates, best first, with the card's anchor and no anchor beside them."""

    candidates: list[Scored]
    manual: Scored
    none: Scored
    rejected: list[tuple[str, str]]  # text, reason

    @property
    def best(self) -> Scored:
        return self.candidates[0]


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
    order = draw.ranking(plain.ids, seed=seed, source=f"{card.name} anchor")
    pairs = [(plain.queries[i], plain.responses[i]) for i in order[:needed]]
    manual = open_task(card, "train", "card")
    held = order[examples:needed]
    return TrainingRows(pairs[:examples], pairs[examples:], [manual.queries[i] for i in held])


def write_anchors(
    engine: WritingEngine, rows: TrainingRows, *, count: int, shown: int, seed: int
) -> Writing:
    """Write `count` candidates, each from `shown` rows, and rank them.

    Raises UserError when the model writes nothing that could be an anchor.
    """
    texts, rejected = _write(engine, rows.examples, count=count, shown=shown, seed=seed)
    if not texts:
        raise UserError(
            f"the model wrote no usable text in {len(rejected)} attempts",
            where=engine.model_name,
            remedy="another --seed, or write the anchor by hand",
        )
    responses = [response for _, response in rows.scored]
    plain = [query for query, _ in rows.scored]
    with track((len(texts) + 2) * len(plain), "scoring anchors", "rows") as bar:

        def losses(queries: Sequence[str]) -> list[tuple[float, int]]:
            found: list[tuple[float, int]] = []
            pairs = list(zip(queries, responses, strict=True))
            while len(found) < len(pairs):
                part = pairs[len(found) : len(found) + _AT_ONCE]
                found += engine.response_losses(part)
                bar.update(len(part))
            return found

        reference = losses(rows.manual)
        manual = _scored("", reference, reference)
        none = _scored("", losses(plain), reference)
        candidates = []
        for written in texts:
            queries = [in_front(written.text) + query for query in plain]
            score = _scored(written.text, losses(queries), reference)
            candidates.append(replace(score, attempt=written.attempt, examples=written.examples))
    ranked = sorted(candidates, key=lambda candidate: (candidate.loss.value, candidate.attempt))
    return Writing(ranked, manual, none, rejected)


def _scored(
    text: str, losses: list[tuple[float, int]], reference: list[tuple[float, int]]
) -> Scored:
    found = retention.retention(losses)
    change = retention.difference(losses, reference)
    tokens = sum(count for _, count in losses)
    return Scored(text, found, tokens, change)


@dataclass(frozen=True)
class _Written:
    text: str
    attempt: int
    examples: tuple[int, ...]


def _write(
    engine: WritingEngine, examples: list[tuple[str, str]], *, count: int, shown: int, seed: int
) -> tuple[list[_Written], list[tuple[str, str]]]:
    """Texts that differ from one another, and those that were not taken."""
    found: list[_Written] = []
    rejected: list[tuple[str, str]] = []
    known: set[int] = set()
    with track(count, f"{engine.model_name} writes", "anchors") as bar:
        for attempt in range(_ATTEMPTS * count):
            if len(found) == count:
                break
            numbers = tuple((attempt * shown + i) % len(examples) for i in range(shown))
            (reply,) = engine.answer(
                [prompt([examples[i] for i in numbers])],
                DECODING,
                max_new_tokens=_MAX_NEW_TOKENS,
                seed=seed * 1_000_003 + attempt,
            )
            text = cleaned(reply)
            key = int(comparison_keys([text])[0]) if text else 0
            if not text or key in known:
                rejected.append((reply.text, "empty" if not text else "said before"))
                continue
            known.add(key)
            found.append(_Written(text, attempt, numbers))
            bar.update()
    return found, rejected


def prompt(examples: Sequence[tuple[str, str]]) -> str:
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
