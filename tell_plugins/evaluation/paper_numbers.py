"""The figures that the paper states (`paper.yaml`), and which answers and sweeps they belong to."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import unknown
from tell_plugins.core.spec import NONE, Spec
from tell_plugins.core.state_files import Shape
from tell_plugins.evaluation.answers import Settings

PAPER_CARDS = ("halu_cot_json", "halu_cot_json_rebuilt", "halu_cot_json_spans")  # one test set
_QWEN = "qwen-7b-chat"
# Section 4.2; where general data is scaled (4.2.3), the figures are those it converges to
_GENERAL_TOKENS = 0.99 * 4_000_000  # met to within one row


class PaperNumber(Shape):
    """JSON adherence (a share) of one setting of the paper; None is any, or not stated."""

    method: str
    task_rows: int | None = None
    general: str | None = None
    value: float
    source: str
    approximate: bool = False


class Point(Shape):
    """One number of a figure. `x` is in tokens, None for a level without a place on the axis."""

    method: str
    x: float | None = None
    value: float
    what: str


class Published(Shape):
    """The numbers that belong to one figure."""

    source: str
    points: list[Point]
    note: str = ""


class Paper(Shape):
    """Everything that the paper states of adherence, and of which model and task."""

    model: str
    metric: str
    settings: list[PaperNumber]
    figures: dict[str, Published]


@cache
def paper() -> Paper:
    """The content of `paper.yaml`."""
    text = Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8")
    return Paper.model_validate(yaml.safe_load(text))


def published(name: str | None, where: str) -> Published | None:
    """The numbers of the figure of that name. Raises UserError for another name."""
    if name is None:
        return None
    if name not in paper().figures:
        raise unknown("set of published points", name, paper().figures, where)
    return paper().figures[name]


def is_papers_task(card: Card) -> bool:
    """Whether the answers of this JSON task are what the paper's script was written for."""
    papers = load_card(PAPER_CARDS[0]).schema_path()
    return card.name in PAPER_CARDS or card.schema_path().read_bytes() == papers.read_bytes()


def paper_number(settings: Settings, spec: Spec | None) -> PaperNumber | None:
    """The paper's JSON adherence for the setting that gave these answers, if it states one.

    `spec` is what the tested model was trained on. Only for Qwen-7B-Chat on the Halu-CoT-JSON test
    set, asked without examples, with the anchor in training and at test, and task rows trained on
    once; TELL in a shuffle with general data of no less tokens than the paper's.
    """
    asked = settings.card in PAPER_CARDS and _QWEN in settings.model.lower()
    if not asked or settings.anchor != "card" or settings.shots:
        return None
    if settings.adapter == "none":
        return paper().settings[0]
    if spec is None or spec.repeat != 1 or spec.task == NONE or spec.anchor != "card":
        return None
    amount, sources = spec.general_of(load_card(spec.card))
    enough = amount.unit == "tok" and amount.number >= _GENERAL_TOKENS
    if amount != NONE and (not enough or spec.order != "shuffle"):
        return None
    method = "SFT" if amount == NONE else "TELL"
    rows = int(spec.task.number) if spec.task.unit == "rows" else None
    found = (
        number
        for number in paper().settings
        if number.method == method
        and number.task_rows in (None, rows)
        and (number.general is None or sources == (number.general,))
    )
    return next(found, None)
