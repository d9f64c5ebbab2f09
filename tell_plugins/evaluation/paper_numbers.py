"""The figures that the paper states in its text, and which saved answers they belong beside.

Its plots are not read off. How its adherence was counted is unknown: 39.54 % is impossible for
1,000 or 1,506 test rows, so another script than the published one made these figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.spec import NONE, Spec
from tell_plugins.evaluation.adapters import Adapter
from tell_plugins.recipe.recipes import load_recipe

BASE, SFT, TELL = "base", "SFT", "TELL"
PAPER_CARDS = ("halu_cot_json", "halu_cot_json_rebuilt", "halu_cot_json_spans")  # one test set
_QWEN = "qwen-7b-chat"
# Section 4.2; where general data is scaled (4.2.3), the figures are those it converges to
_GENERAL_TOKENS = 4_000_000
_TEXT, _A5 = "Section 4.2.3", "Appendix A.5 (amount of task data not stated)"


@dataclass(frozen=True)
class PaperNumber:
    """JSON adherence (a share) of one setting of the paper; None is any, or not stated."""

    method: str
    task_rows: int | None
    general: str | None
    value: float
    source: str
    approximate: bool = False


# The first that fits is taken, so the more exact ones stand first.
JSON_ADHERENCE = (
    PaperNumber(BASE, None, None, 0.01, _TEXT),
    PaperNumber(TELL, 15, "alpaca_en", 0.3954, _TEXT),
    PaperNumber(SFT, 115, None, 0.42, _TEXT),
    PaperNumber(TELL, 115, "alpaca_en", 0.99, _TEXT),
    PaperNumber(SFT, 883, None, 0.99, _TEXT, approximate=True),
    PaperNumber(TELL, None, "alpaca_en", 0.94, _A5),
    PaperNumber(TELL, None, "open_platypus", 0.921, _A5),
)


@dataclass(frozen=True)
class Training:
    """What the tested model was trained on, as far as the paper's settings are told apart by it."""

    method: str
    task_rows: int | None = None
    general: tuple[str, ...] = ()
    general_tokens: float | None = None
    anchor: str = "card"
    order: str = "shuffle"


def paper_number(card: str, settings: Mapping[str, Any]) -> PaperNumber | None:
    """The paper's JSON adherence for the setting that gave these answers, if it states one.

    Only for Qwen-7B-Chat on the Halu-CoT-JSON test set, asked without examples, with the anchor in
    training and at test, and task rows trained on once; TELL in a shuffle with general data of no
    less tokens than the paper's.
    """
    model = str(settings.get("model") or "").lower()
    if card not in PAPER_CARDS or _QWEN not in model:
        return None
    if settings.get("anchor", "card") != "card" or settings.get("shots"):
        return None
    training = trained_on(settings)
    if training is None or not _as_the_paper_mixes(training):
        return None
    general = training.general[0] if len(training.general) == 1 else None
    for number in JSON_ADHERENCE:
        if (
            number.method == training.method
            and number.task_rows in (None, training.task_rows)
            and number.general in (None, general)
        ):
            return number
    return None


def _as_the_paper_mixes(training: Training) -> bool:
    if training.anchor != "card":
        return False
    if training.method != TELL:
        return True
    enough = (training.general_tokens or 0) >= 0.99 * _GENERAL_TOKENS  # met to within one row
    return enough and training.order == "shuffle"


def trained_on(settings: Mapping[str, Any]) -> Training | None:
    """From the manifest beside the adapter, else from the recipe of that name; None if unknown."""
    adapter = str(settings.get("adapter") or "")
    if adapter == "none":
        return Training(BASE)
    manifest = saved_manifest(adapter)
    if manifest is not None:
        return _from_manifest(manifest)
    return _from_recipe(str(settings.get("recipe") or ""))


def is_papers_task(card: Card) -> bool:
    """Whether the answers of this task are what the paper's script was written for."""
    if card.name in PAPER_CARDS:
        return True
    return _schema(card) is not None and _schema(card) == _schema(load_card(PAPER_CARDS[0]))


def _schema(card: Card) -> bytes | None:
    file = card.answer.schema_file if card.answer else None
    return card.file(file).read_bytes() if file else None


def saved_manifest(adapter: str) -> dict[str, Any] | None:
    """The manifest beside an adapter that saved answers name; None where it is gone or damaged."""
    for folder in (paths.user_path(adapter), paths.PROJECT / adapter):
        try:
            manifest = Adapter("", folder).manifest()
        except ValueError:  # a damaged file says nothing
            manifest = None
        if manifest is not None:
            return manifest
    return None


def _from_manifest(manifest: Mapping[str, Any]) -> Training | None:
    sources = manifest.get("sources", [])
    task = [source for source in sources if source.get("role") == "task"]
    used = [s for s in sources if s.get("role") == "general" and s["rows"]["used"]]
    if len(task) != 1 or task[0]["rows"].get("copies", 1) != 1 or not task[0]["rows"]["used"]:
        return None
    return Training(
        TELL if used else SFT,
        task[0]["rows"]["used"],
        tuple(source["card"] for source in used),
        sum(source.get("tokens", {}).get("used") or 0 for source in used),
        manifest.get("anchor", {}).get("choice", "card"),
        manifest.get("order", "shuffle"),
    )


def recipe_spec(name: str) -> Spec | None:
    """The dataset string of the pack's recipe of that name; None for another."""
    try:
        return load_recipe(paths.RECIPES / f"{Path(name).stem}.yaml").spec
    except UserError:
        return None


def _from_recipe(name: str) -> Training | None:
    spec = recipe_spec(name)
    if spec is None:
        return None
    if spec.repeat != 1 or spec.task == NONE:
        return None
    general = load_card(spec.card).general
    if general is None:
        return None
    amount = spec.general or general.amount
    rows = int(spec.task.number) if spec.task.unit == "rows" else None
    if amount == NONE:
        return Training(SFT, rows, anchor=spec.anchor)
    tokens = amount.number if amount.unit == "tok" else None
    return Training(TELL, rows, spec.sources or general.sources, tokens, spec.anchor, spec.order)
