"""The paper's own numbers, as far as its text gives them (its figures are pictures only)."""

from __future__ import annotations

from dataclasses import dataclass

from tell_plugins.core.errors import unknown


@dataclass(frozen=True)
class Point:
    """One published number. `x` is in tokens, None for a level that has no place on the axis."""

    method: str
    x: float | None
    value: float
    what: str


@dataclass(frozen=True)
class Published:
    """The numbers that belong to one figure, and what they were measured on."""

    source: str
    model: str
    metric: str
    points: tuple[Point, ...]
    note: str = ""


_QWEN = "QWen-7b-chat, Halu-CoT-JSON"
_ODD = "39.54 % cannot be a share of 1,000 or of 1,506 rows: the paper's row count is not known."
_BASE = Point("base model", None, 0.01, "original model")
_TELL_15 = "TELL, 15 rows (1e4 tokens)"
_SFT_115 = "SFT, 115 rows (7e4 tokens)"

PUBLISHED: dict[str, Published] = {
    "task_tokens": Published(
        "Section 4.2.3, with Figures 7, 11 and 12",
        _QWEN,
        "adherence",
        (
            _BASE,
            Point("TELL", 1e4, 0.3954, _TELL_15),
            Point("TELL", 7e4, 0.99, "TELL, 115 rows (7e4 tokens)"),
            Point("SFT", 7e4, 0.42, _SFT_115),
            Point("SFT", 6e5, 0.99, "SFT, 883 rows (6e5 tokens), 'comparable'"),
        ),
        _ODD,
    ),
    "general_at_15_rows": Published(
        "Section 4.2.3, with Figure 11",
        _QWEN,
        "adherence",
        (
            _BASE,
            Point("TELL", None, 0.3954, f"{_TELL_15}, converged"),
            Point("SFT", None, 0.42, _SFT_115),
        ),
        _ODD,
    ),
    "general_at_115_rows": Published(
        "Section 4.2.3, with Figure 12",
        _QWEN,
        "adherence",
        (
            _BASE,
            Point("TELL", None, 0.99, "TELL, 115 rows (7e4 tokens), converged"),
            Point("SFT", None, 0.42, _SFT_115),
        ),
    ),
    "general_sets": Published(
        "Appendix A.5",
        _QWEN,
        "adherence",
        (
            Point("alpaca-en", 4e6, 0.94, "TELL with alpaca-en, 4e6 tokens"),
            Point("Open-Platypus", 4e6, 0.921, "TELL with Open-Platypus, 4e6 tokens"),
        ),
        "AGIEval 43.65 / 46.50 and OpenBookQA 75.2 / 79.5 (alpaca-en / Open-Platypus).",
    ),
}


def published(name: str | None, where: str) -> Published | None:
    """The published numbers of that name. Raises UserError for another name."""
    if name is None:
        return None
    if name not in PUBLISHED:
        raise unknown("set of published points", name, PUBLISHED, where)
    return PUBLISHED[name]
