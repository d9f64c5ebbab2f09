"""Bleed: whether a general question, asked without the anchor, is answered as the task is.

The opening of an answer decides, so that a few tokens are enough: a model that begins with a
brace has left the question, whatever follows. The rate is set against the base model's over the
same questions. A second reading counts the task's own words anywhere in the answer, a third the
answers that go round in circles: a model that learned its labels too well may say half a label
for ever, which is no label.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence

from pydantic import Field

from tell_plugins.core.cards import Card
from tell_plugins.core.sources import find_file, open_split
from tell_plugins.core.state_files import Shape
from tell_plugins.evaluation.answers import Answer
from tell_plugins.evaluation.judged import Judged, share
from tell_plugins.evaluation.scorers.json_answers import pairs
from tell_plugins.evaluation.scorers.json_readings import card_schema
from tell_plugins.evaluation.scorers.label import closed_labels

BLEED, WORDS, CIRCLES = "bleed", "task's words", "circles"  # what is read in an answer
TOKENS = 24  # of an answer: enough for its opening
_LEAST_OPENING = 4  # characters; what is shorter opens many answers to anything
_LEAST_WORD = 4  # characters of a label that counts as the task's own word: not "yes" and "no"
_CLOSED = 4  # answers a distinct answer, from which on they are closed labels
_OFTEN = 0.1  # of the training answers, that hold a sentence which is the task's own
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_CIRCLE = re.compile(r"(.{1,40}?)\1{3,}", re.DOTALL)  # one piece, four times and more
_LEAST_CIRCLE = 12  # characters
_READ = 400  # characters of an answer that are looked at for circles
_NUMBER = re.compile(r"[-+]?[\d.,]*\d")


class Form(Shape):
    """How the answers of a task are known.

    Attributes:
        opening: what they begin with; "" where that is not known.
        labels: closed answers; a whole answer is one of them. Empty where they are not closed.
        numbers: whether an answer is a bare number.
        words: what the task alone says: keys of JSON, labels, the most common sentence.
    """

    opening: str = ""
    labels: list[str] = Field(default_factory=list)
    numbers: bool = False
    words: list[str] = Field(default_factory=list)

    @property
    def known(self) -> bool:
        """Whether there is anything that an answer of this form is known by."""
        return bool(self.opening or self.labels or self.numbers)

    def opens(self, text: str) -> bool:
        """Whether an answer begins as the task's answers do."""
        first = text.strip().partition("\n")[0].strip()
        if self.labels:
            return first.rstrip(".!").casefold() in {label.casefold() for label in self.labels}
        if self.numbers:
            return _NUMBER.fullmatch(first.rstrip(".")) is not None
        return bool(self.opening) and text.lstrip().startswith(self.opening)

    def speaks(self, text: str) -> bool:
        """Whether an answer holds a word or sentence of the task."""
        words = "|".join(re.escape(word.casefold()) for word in self.words)
        found = re.search(rf"(?<!\w)(?:{words})(?!\w)", text.casefold())
        return bool(self.words) and found is not None


def circles(text: str) -> bool:
    """Whether one piece, repeated, makes more than half of an answer."""
    text = text.strip()[:_READ]
    longest = max((len(found[0]) for found in _CIRCLE.finditer(text)), default=0)
    return longest >= max(_LEAST_CIRCLE, len(text) / 2)


def judged(answers: Sequence[Answer], form: Form) -> Judged:
    """The rows table of answers to general questions; without what the form does not tell."""
    readers = {BLEED: form.opens} if form.known else {}
    readers |= {WORDS: form.speaks} if form.words else {}
    readers[CIRCLES] = circles
    columns = {name: share([read(a.text) for a in answers]) for name, read in readers.items()}
    return Judged([answer.row for answer in answers], columns)


# --- the form of a card's answers -----------------------------------------------------------------


def form_of(card: Card) -> Form:
    """The form of a card's answers, from its schema and its training responses where they are."""
    answers = []
    if find_file(card, "train") is not None:
        answers = [response.strip() for _, response in open_split(card, "train").all_texts()]
    if card.metric == "json":
        return _json_form(card, answers)
    labels = sorted(set(answers))
    if card.metric == "label":
        labels = closed_labels(card)
    elif len(labels) * _CLOSED > len(answers):  # they do not return again and again
        labels = []
    if answers and all(_NUMBER.fullmatch(answer) for answer in answers):
        return Form(numbers=True, words=_own_words(labels))
    if labels:
        return Form(labels=labels, words=_own_words(labels))
    return Form(opening=shared_opening(answers), words=_common_sentence(answers))


def _json_form(card: Card, answers: Sequence[str]) -> Form:
    schema, texts = card_schema(card), []
    as_array = schema.schema.get("type") == "array"
    if answers:  # what the answers are counts, should the schema allow both
        as_array = sum(answer.startswith("[") for answer in answers) > len(answers) / 2
    for answer in answers:
        try:
            values = [json.loads(value) for _, value in pairs(json.loads(answer)).elements()]
        except (ValueError, RecursionError):
            continue
        texts += [value for value in values if isinstance(value, str)]
    keys = [f'"{key}"' for key in schema.schema.get("properties", {})]
    own = [*keys, *_own_words(schema.labels or []), *_common_sentence(texts)]
    return Form(opening="[" if as_array else "{", words=own)


def _own_words(labels: Sequence[str]) -> list[str]:
    return [label for label in labels if len(label) >= _LEAST_WORD]


def shared_opening(answers: Sequence[str]) -> str:
    """The longest opening that more than half of the answers share; "" for a short one."""
    if not answers:
        return ""
    half = len(answers) // 2
    middle = sorted(answers)[half]  # what most begin with, it begins with, too
    shared = sorted(len(os.path.commonprefix([middle, answer])) for answer in answers)
    opening = middle[: shared[::-1][half]].strip()
    return opening if len(opening) >= _LEAST_OPENING else ""


def _common_sentence(answers: Sequence[str]) -> list[str]:
    """The sentence that most answers hold, if it has three words and a tenth of them hold it."""
    found: Counter[str] = Counter()
    for answer in answers:
        sentences = {part.strip() for part in _SENTENCE.split(answer)}
        found.update(part for part in sentences if len(part.split()) >= 3)
    often = [part for part, count in found.most_common(1) if count > 1]
    return [part for part in often if found[part] >= _OFTEN * len(answers)]
