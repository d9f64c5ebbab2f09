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
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation.adapters import Adapter
from tell_plugins.recipe.recipes import load_recipe

BASE, SFT, TELL = "base", "SFT", "TELL"
_HALU = ("halu_cot_json", "halu_cot_json_rebuilt", "halu_cot_json_spans")  # one test set
_QWEN = "qwen-7b-chat"
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


def paper_number(card: str, settings: Mapping[str, Any]) -> PaperNumber | None:
    """The paper's JSON adherence for the setting that gave these answers, if it states one.

    Only for Qwen-7B-Chat on the Halu-CoT-JSON test set, with task rows trained on once.
    """
    model = str(settings.get("model") or "").lower()
    if card not in _HALU or _QWEN not in model:
        return None
    training = trained_on(settings)
    if training is None:
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


def trained_on(settings: Mapping[str, Any]) -> Training | None:
    """From the manifest beside the adapter, else from the recipe of that name; None if unknown."""
    adapter = str(settings.get("adapter") or "")
    if adapter == "none":
        return Training(BASE)
    manifest = _manifest(adapter)
    if manifest is not None:
        return _from_manifest(manifest)
    return _from_recipe(str(settings.get("recipe") or ""))


def _manifest(adapter: str) -> dict[str, Any] | None:
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
    if len(task) != 1 or task[0]["rows"].get("copies", 1) != 1:
        return None
    return Training(
        TELL if used else SFT, task[0]["rows"]["used"], tuple(source["card"] for source in used)
    )


def _from_recipe(name: str) -> Training | None:
    path = paths.RECIPES / f"{Path(name).stem}.yaml"
    try:
        spec = load_recipe(path).spec
    except UserError:
        return None
    if spec.repeat != 1:
        return None
    nothing = spec.general is not None and spec.general.number == 0 and spec.general.unit != "all"
    rows = int(spec.task.number) if spec.task.unit == "rows" else None
    return Training(SFT if nothing else TELL, rows, () if nothing else _sources(spec))


def _sources(spec: Any) -> tuple[str, ...]:
    from tell_plugins.core.cards import load_card

    if spec.sources is not None:
        return tuple(spec.sources)
    general = load_card(spec.card).general
    return general.sources if general is not None else ()
