"""What a trained adapter has to beat: the base model with examples, with a choice, and word counts.

They answer through `eval` like any system, so every table shows them beside it. What they learn
from are the recipe's task rows, those that its training would see.

- `shots`: the base model with as many of the task rows in front of a question as fit.
- `choices`: the base model takes the closed answer that it finds likeliest.
- `words`: TF-IDF and logistic regression, no language model; the answer is a training answer that
  carries the predicted label.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from tell_plugins.bridge.protocol import Decoding, Engine, History, Reply
from tell_plugins.core import draw, paths
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import read_json, write_json
from tell_plugins.core.mixture import TASK, build_mixture
from tell_plugins.core.sources import TaskRows, find_file, open_task
from tell_plugins.core.spec import Spec, parse_amount
from tell_plugins.evaluation.answers import Prompt
from tell_plugins.evaluation.retention import LossEngine
from tell_plugins.evaluation.scorers.json_readings import card_schema, has_labels, reference_label
from tell_plugins.evaluation.scorers.label import closed_labels

SHOTS, CHOICES, WORDS = RIVALS = ("shots", "choices", "words")
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

    def answer(
        self,
        prompts: Sequence[str],
        decoding: Decoding,
        *,
        max_new_tokens: int,
        seed: int,
        history: History = (),
    ) -> list[Reply]:
        texts = [self.answer_to(prompt) for prompt in prompts]
        return [Reply(text, "stop", len(text.split())) for text in texts]


NO_MODEL = AnswerTable("no model", str)


def fits(rival: str, card: Card) -> bool:
    """Whether the card's answers are such as the rival can give."""
    if rival == CHOICES:
        return closed_answers(card) is not None
    return rival != WORDS or _has_labels(card)


def refuse_unfit(rival: str, card: Card, where: str = "--adapter") -> None:
    """Raise UserError where the card's answers are none that the rival can give."""
    if fits(rival, card):
        return
    closed = rival == CHOICES
    raise UserError(
        f"card '{card.name}' has no "
        + ("closed answers to choose from" if closed else "label that words could tell"),
        where=f"{where} {rival}",
        allowed="cards with metric 'label', or JSON "
        + ("of nothing but a label with an enum" if closed else "with a label"),
        remedy="leave it out",
    )


def _has_labels(card: Card) -> bool:
    return card.metric == "label" or has_labels(card)


def closed_answers(card: Card) -> list[str] | None:
    """All answers that the card allows; None where these cannot be listed."""
    if card.metric == "label":
        return closed_labels(card)
    if card.metric != "json" or not has_labels(card):
        return None
    schema = card_schema(card)
    allowed = schema.properties.get(schema.label or "", {}).get("enum")
    if allowed is None or set(schema.properties) != {schema.label}:
        return None
    return [json.dumps({schema.label: value}, ensure_ascii=False) for value in allowed]


def task_rows(spec: Spec) -> tuple[TaskRows, list[int]]:
    """The split that a dataset string trains on, and the places of the task rows that it draws."""
    alone = replace(spec, general=parse_amount("0", task=False, where="general"), sources=None)
    mixture = build_mixture(alone)
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
    right = [_label_of(card, task.responses[row]) for row in used]
    first = {
        label: task.responses[row] for label, row in reversed(list(zip(right, used, strict=True)))
    }
    tested = open_task(card, split, "none").plain
    queries = [tested[prompt.row] for prompt in prompts]
    if len(first) == 1:
        said = right[:1] * len(queries)
    else:
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\S+"),
            LogisticRegression(class_weight="balanced", max_iter=1000),
        )
        said = list(model.fit([task.plain[row] for row in used], right).predict(queries))
    table = {prompt.text: first[label] for prompt, label in zip(prompts, said, strict=True)}
    return AnswerTable(f"TF-IDF and logistic regression, {len(used)} rows", table.__getitem__)


def _label_of(card: Card, response: str) -> str:
    if card.metric == "label":
        return response.strip()
    return reference_label(response, card_schema(card))


def by_choice(engine: Engine, card: Card) -> Engine:
    """The closed answer with the highest likelihood as a whole, end of the turn included."""
    answers = closed_answers(card)
    assert answers is not None  # `refuse_unfit`
    if not hasattr(engine, "response_losses"):
        raise UserError(
            f"engine '{engine.name}' gives no likelihood of a given answer",
            where=f"--adapter {CHOICES}",
            remedy="--engine transformers",
        )
    losses = cast(LossEngine, engine).response_losses

    def likeliest(prompt: str) -> str:
        found = losses([(prompt, answer) for answer in answers])
        return min(zip(found, answers, strict=True), key=lambda pair: pair[0][0])[1]

    return AnswerTable(f"{engine.name}, likeliest of {len(answers)}", likeliest, engine.model_name)


def examples_that_fit(
    engine: Engine, spec: Spec, prompts: Sequence[Prompt], max_new_tokens: int, anchor: str
) -> Examples:
    """Task rows in seeded order, up to the first that the model's context does not hold."""
    task, used = task_rows(spec)
    ranked = ranked_examples(task.card, anchor, split=spec.split, among=set(used))
    kept = ranked.examples[:_MOST_UNBOUNDED]
    if engine.context is not None:
        longest = max(engine.prompt_tokens([prompt.text for prompt in prompts]))
        kept = _within(engine, ranked.examples, engine.context - longest - max_new_tokens)
    if not kept:
        raise UserError(
            "no task row fits in front of the longest question",
            where=f"--adapter {SHOTS}",
            remedy="a smaller --max-new-tokens, or a model with a longer context",
        )
    return replace(ranked, examples=kept)


def _within(engine: Engine, examples: Sequence[Example], room: int) -> list[Example]:
    """The first examples whose turns have at most `room` tokens, each counted with its template."""
    turns = engine.prompt_tokens([text for e in examples for text in (e.query, e.response)])
    kept = []
    for place, example in enumerate(examples):
        room -= turns[2 * place] + turns[2 * place + 1]
        if room < 0:
            break
        kept.append(example)
    return kept


FORMAT = 1
EXAMPLES = "examples.json"


@dataclass(frozen=True)
class Example:
    """A row of the training split with its anchor. `id` is the content hash of the plain row."""

    id: str
    row: int
    query: str
    response: str


@dataclass(frozen=True)
class Examples:
    """The examples in the order in which they are shown, and how they were chosen."""

    card: str
    split: str
    anchor: str
    seed: int
    longest: int
    examples: list[Example]

    @property
    def history(self) -> list[tuple[str, str]]:
        """(query, response) pairs to put in front of a question."""
        return [(example.query, example.response) for example in self.examples]


def choose_examples(
    card: Card,
    anchor: str = "card",
    *,
    count: int = 2,
    seed: int = 42,
    split: str = "train",
    longest: int | None = None,
) -> Examples:
    """The first `count` rows of the split's seeded ranking that are not too long.

    `longest` bounds the characters of query and response together; by default it is the split's
    median, so that examples leave room for the question. Rows that also stand in a held-out split
    are never chosen. Raises UserError when too few rows are left.
    """
    fit = ranked_examples(card, anchor, seed=seed, split=split, longest=longest or 0)
    if len(fit.examples) < count:
        raise UserError(
            f"{count} examples asked, {len(fit.examples)} rows have up to {fit.longest:,} "
            "characters",
            where=f"split '{split}' of card '{card.name}'",
            remedy="ask for fewer examples, or allow longer ones",
        )
    return replace(fit, examples=fit.examples[:count])


def ranked_examples(
    card: Card,
    anchor: str,
    *,
    seed: int = 42,
    split: str = "train",
    longest: int | None = None,
    among: Collection[int] | None = None,
) -> Examples:
    """All rows of the split that may be examples, in the seeded order.

    `longest` bounds their characters (None: it does not; 0: by the split's median), `among` names
    the rows that may be taken.
    """
    task = open_task(card, split, anchor)
    sizes = [len(q) + len(r) for q, r in zip(task.queries, task.responses, strict=True)]
    limit = max(sizes) if longest is None else longest or int(np.median(sizes))
    held_out = _held_out_keys(card, anchor, split)
    ranked = draw.ranking(task.ids, seed=seed, source=f"{card.name} examples")
    examples = [
        Example(bytes(task.ids[row]).hex(), int(row), task.queries[row], task.responses[row])
        for row in ranked
        if sizes[row] <= limit
        and int(task.query_keys[row]) not in held_out
        and (among is None or int(row) in among)
    ]
    return Examples(card.name, split, anchor, seed, limit, examples)


def fixed_examples(
    folder: Path, card: Card, anchor: str = "card", *, count: int = 2, seed: int = 42
) -> Examples:
    """The examples saved in `folder`, chosen and saved there on the first call.

    Raises UserError when those saved were chosen otherwise, or their rows are gone.
    """
    path = folder / EXAMPLES
    chosen = choose_examples(card, anchor, count=count, seed=seed)
    if not path.is_file():
        save_examples(path, chosen)
        return chosen
    saved = load_examples(path)
    if saved != chosen:
        raise UserError(
            f"other examples are saved here (card '{saved.card}', anchor '{saved.anchor}', "
            f"seed {saved.seed}, {len(saved.examples)} rows)",
            where=paths.shown(path),
            remedy="use another folder, or remove the file and the answers beside it",
        )
    return saved


def save_examples(path: Path, examples: Examples) -> None:
    """Write the examples in one piece."""
    content = {"format": FORMAT, **asdict(examples)}
    write_json(path, content)


def load_examples(path: Path) -> Examples:
    """Read saved examples. Raises UserError for a file that is none."""
    try:
        content = dict(read_json(path, dict[str, Any], "remove the file") or {})
        del content["format"]
        content["examples"] = [Example(**example) for example in content["examples"]]
        return Examples(**content)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"no saved examples: {error}", where=paths.shown(path), remedy="remove the file"
        ) from None


def _held_out_keys(card: Card, anchor: str, split: str) -> set[int]:
    keys: set[int] = set()
    for name in card.splits:
        if name != split and find_file(card, name):
            keys |= {int(key) for key in open_task(card, name, anchor).query_keys}
    return keys
