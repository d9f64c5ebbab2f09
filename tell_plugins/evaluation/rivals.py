"""What a trained adapter has to beat: the base model with examples, with a choice, and word counts.

They answer through `eval` like any system, so every table shows them beside it. What they learn
from are the recipe's task rows, those that its training would see.

- `shots`: the base model with as many of the task rows in front of a question as fit.
- `choices`: the base model takes the closed answer that it finds likeliest.
- `words`: TF-IDF and logistic regression, no language model; the answer is a training answer that
  carries the predicted label.

Fixed examples in front of a question (`--shots`, Appendix A.1) are chosen here too. The paper's
script holds placeholders, so which two it used is not known; a file beside the answers says which
were taken.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tell_plugins.bridge.protocol import Ask, Engine, History, Reply
from tell_plugins.core import draw
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import TASK, build_mixture
from tell_plugins.core.sources import TaskRows, find_file, open_task
from tell_plugins.core.spec import NONE, Spec, splits_of
from tell_plugins.core.state_files import write_json
from tell_plugins.evaluation import scorers
from tell_plugins.evaluation.answers import Prompt
from tell_plugins.evaluation.scorers.json_readings import card_schema, has_labels
from tell_plugins.evaluation.scorers.label import closed_labels

# Thai, Lao, Burmese, Khmer, kana, Han: no blanks part their words, so each character counts
_NO_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = rf"(?u)[{_NO_BLANKS}]|[^\s{_NO_BLANKS}]+"
SHOTS, CHOICES, WORDS = RIVALS = ("shots", "choices", "words")
_NEEDS = {  # what a card may lack, and the JSON that has it
    CHOICES: ("closed answers to choose from", "of nothing but a label with an enum"),
    WORDS: ("label that words could tell", "with a label"),
}
EXAMPLES = "examples.json"
_FORMAT = 1  # of `EXAMPLES`
_SEED = 42  # of their order
_MOST_UNBOUNDED = 16  # examples where nobody knows how many the context holds


@dataclass
class AnswerTable:
    """An engine without a model: it looks the answer to a prompt up."""

    name: str
    answer_to: Callable[[str], str]
    model_name: str = "none"
    context: int | None = None

    @contextlib.contextmanager
    def adapter(self, name: str | None) -> Iterator[None]:
        yield

    def prompt_tokens(self, prompts: Sequence[str], history: History = ()) -> list[int]:
        return [len(prompt.split()) for prompt in prompts]

    def answer(self, prompts: Sequence[str], ask: Ask) -> list[Reply]:
        texts = [self.answer_to(prompt) for prompt in prompts]
        return [Reply(text, "stop", len(text.split())) for text in texts]


NO_MODEL = AnswerTable("no model", str)


def fits(rival: str, card: Card) -> bool:
    """Whether the card's answers are such as the rival can give."""
    if rival == CHOICES:
        return closed_answers(card) is not None
    return rival != WORDS or card.metric == "label" or has_labels(card)


def refuse_unfit(rival: str, card: Card, where: str = "--adapter") -> None:
    """Raise UserError where the card's answers are none that the rival can give."""
    if not fits(rival, card):
        lacking, kind = _NEEDS[rival]
        raise UserError(
            f"card '{card.name}' has no {lacking}",
            where=f"{where} {rival}",
            allowed=f"cards with metric 'label', or JSON {kind}",
            remedy="leave it out",
        )


def closed_answers(card: Card) -> list[str] | None:
    """All answers that the card allows; None where these cannot be listed."""
    if card.metric == "label":
        return closed_labels(card)
    if card.metric != "json" or not has_labels(card):
        return None
    schema = card_schema(card)
    if schema.allowed is None or set(schema.properties) != {schema.label}:
        return None
    return [json.dumps({schema.label: value}, ensure_ascii=False) for value in schema.allowed]


def task_rows(spec: Spec) -> tuple[TaskRows, list[int]]:
    """The split that a dataset string trains on, and the places of the task rows that it draws."""
    mixture = build_mixture(replace(spec, general=NONE, sources=None))
    used = [int(row) for part in mixture.sources if part.role == TASK for row in part.used]
    if mixture.task is None or not used:
        raise UserError(
            "the recipe has no task rows to learn from",
            where=f"dataset: {spec}",
            remedy="name the recipe of the task",
        )
    return mixture.task, used


def by_words(spec: Spec, card: Card, prompts: Sequence[Prompt], split: str) -> Engine:
    """TF-IDF of words and pairs of words, and logistic regression with balanced classes."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    task, used = task_rows(spec)
    labels = scorers.right(task).of
    right = [labels[row] for row in used]
    first = {labels[row]: task.responses[row] for row in reversed(used)}
    tested = open_task(card, split, "none").plain
    said = right[:1] * len(prompts)
    if len(first) > 1:
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD),
            LogisticRegression(class_weight="balanced", max_iter=1000),
        )
        model.fit([task.plain[row] for row in used], right)
        said = list(model.predict([tested[prompt.row] for prompt in prompts]))
    table = {prompt.text: first[label] for prompt, label in zip(prompts, said, strict=True)}
    return AnswerTable(f"TF-IDF and logistic regression, {len(used)} rows", table.__getitem__)


def by_choice(engine: Any, card: Card) -> Engine:
    """The closed answer with the highest likelihood as a whole, end of the turn included."""
    answers = closed_answers(card) or []
    if not hasattr(engine, "response_losses"):
        raise UserError(
            f"engine '{engine.name}' gives no likelihood of a given answer",
            where=f"--adapter {CHOICES}",
            remedy="--engine transformers",
        )

    def likeliest(prompt: str) -> str:
        losses = engine.response_losses([(prompt, answer) for answer in answers])
        return min(zip(losses, answers, strict=True), key=lambda pair: pair[0][0])[1]

    return AnswerTable(f"{engine.name}, likeliest of {len(answers)}", likeliest, engine.model_name)


# --- examples in front of a question --------------------------------------------------------------


class Example(NamedTuple):
    """A row of the training split with its anchor. `id` is the content hash of the plain row."""

    id: str
    row: int
    query: str
    response: str


class Examples(NamedTuple):
    """The examples in the order in which they are shown."""

    card: str
    split: str
    anchor: str
    examples: list[Example]

    @property
    def history(self) -> list[tuple[str, str]]:
        """(query, response) pairs to put in front of a question."""
        return [(example.query, example.response) for example in self.examples]

    def keep(self, folder: Path) -> None:
        """Save them beside the answers that were given after them."""
        rows = {"examples": [example._asdict() for example in self.examples]}
        write_json(folder / EXAMPLES, {"format": _FORMAT, "seed": _SEED, **self._asdict()} | rows)


def choose_examples(card: Card, anchor: str, count: int) -> Examples:
    """The first `count` training rows of the seeded ranking that are not longer than the median, so
    that they leave room for the question. Raises UserError when too few rows are left."""
    task = open_task(card, "train", anchor)
    sizes = [len(q) + len(r) for q, r in zip(task.queries, task.responses, strict=True)]
    longest = int(np.median(sizes))
    fit = [row for row in ranked_examples(card, anchor, "train") if sizes[row.row] <= longest]
    if len(fit) < count:
        raise UserError(
            f"{count} examples asked, {len(fit)} rows have up to {longest:,} characters",
            where=f"split 'train' of card '{card.name}'",
            remedy="ask for fewer examples",
        )
    return Examples(card.name, "train", anchor, fit[:count])


def examples_that_fit(
    engine: Engine, spec: Spec, prompts: Sequence[Prompt], max_new_tokens: int, anchor: str
) -> Examples:
    """Task rows in seeded order, up to the first that the model's context does not hold."""
    task, used = task_rows(spec)
    kept = [row for row in ranked_examples(task.card, anchor, spec.split) if row.row in set(used)]
    if engine.context is None:
        kept = kept[:_MOST_UNBOUNDED]
    else:
        longest = max(engine.prompt_tokens([prompt.text for prompt in prompts]))
        turns = engine.prompt_tokens([text for e in kept for text in (e.query, e.response)])
        ends = np.cumsum(np.reshape(turns, (-1, 2)).sum(axis=1))  # each with its template
        kept = kept[: int((ends <= engine.context - longest - max_new_tokens).sum())]
    if not kept:
        raise UserError(
            "no task row fits in front of the longest question",
            where=f"--adapter {SHOTS}",
            remedy="a smaller --max-new-tokens, or a model with a longer context",
        )
    return Examples(task.card.name, spec.split, anchor, kept)


def ranked_examples(card: Card, anchor: str, split: str) -> list[Example]:
    """All rows of the split that may be examples, in a seeded order: none that stands in another
    split too."""
    task = open_task(card, split, anchor)
    others = [
        name for name in card.splits if name not in splits_of(split) and find_file(card, name)
    ]
    held_out = {int(key) for name in others for key in open_task(card, name, anchor).query_keys}
    ranked = draw.ranking(task.ids, seed=_SEED, source=f"{card.name} examples").tolist()
    return [
        Example(bytes(task.ids[row]).hex(), row, task.queries[row], task.responses[row])
        for row in ranked
        if int(task.query_keys[row]) not in held_out
    ]
