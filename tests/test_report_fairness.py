"""What a report does not conclude: without exposure, without power, from a leak of few rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tell_plugins import cli
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation.intervals import POWER, Z95, Estimate, Rate, smallest_shown
from tell_plugins.experiments import tables
from tell_plugins.experiments.conclusions import Conclusions, conclude
from tell_plugins.experiments.measures import Judge
from tell_plugins.experiments.report import corrections
from tell_plugins.experiments.results import ReferenceShelf, load_studies
from tests.conftest import PROJECT
from tests.made_results import MadeResults

RESULTS = PROJECT / "results"
Fill = Callable[[MadeResults], object]


def concluded(root: Path, fill: Fill, rows: int = 100) -> Conclusions:
    made = MadeResults(root, rows=rows)
    made.base()
    fill(made)
    made.index("made", "Made", [42])
    (study,) = load_studies(root)
    judge = Judge(ReferenceShelf(root))
    return conclude(study, tables.groups(study, judge), judge)


def about(found: Conclusions, other: str) -> str:
    (said,) = [text for text in found.shows if text.startswith(f"TELL against {other}")]
    return said


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"exposure": 5.0}, "adherence higher (+50.0"),
        ({"exposure": 0.0}, "NO CONCLUSION. the task rows of other met no learning rate"),
        ({"no_op": True}, "NO CONCLUSION. the task rows of other met no learning rate"),
        ({"exposure": 0.5}, "NO CONCLUSION. the same rows and steps, but exposure 5.6 against 0.5"),
        ({"exposure": 0.5, "steps": 9}, "Note: unequal exposure of the task rows: exposure 5.6"),
        ({"exposure": 5.0, "leaked": 2}, "NO CONCLUSION. 2 of the rows asked are among"),
        ({"exposure": 5.0, "leaked": 60}, "Note: 60 of the rows asked are among the general rows"),
    ],
)
def test_what_runs_forbid_to_conclude(other: dict[str, float], said: str, tmp_path: Path) -> None:
    def fill(made: MadeResults) -> None:
        made.run("TELL", adherent=0.6, exposure=5.56)
        made.run("other", adherent=0.1, **other)  # type: ignore[arg-type]

    found = concluded(tmp_path, fill)
    assert said in about(found, "other")
    held = [text for text in found.answers if text.startswith("NO CONCLUSION is drawn from other")]
    assert bool(held) == ("NO CONCLUSION" in said)
    (study,) = load_studies(tmp_path)
    judge = Judge(ReferenceShelf(tmp_path))
    compared = tables.comparisons_table(study, tables.groups(study, judge), judge)
    (record,) = [row for row in compared if row["comparison"] == "TELL minus other"]
    assert record["exposure"].startswith("5.6 against ")


def test_forty_rows_say_what_they_cannot_show(tmp_path: Path) -> None:
    def fill(made: MadeResults) -> None:
        made.run("TELL", adherent=0.6)
        made.run("other", adherent=0.55)

    said = about(concluded(tmp_path, fill, rows=40), "other")
    assert "adherence NO CONCLUSION, too few rows (+5.0 points [" in said
    shown = float(said.partition("40 rows, which show ")[2].partition(" ")[0])
    assert shown > 10


def test_a_known_difference_is_seen_as_often_as_the_power_says() -> None:
    """The smallest difference of a test of n paired values is found in four of five repetitions."""
    import numpy as np

    random, n, spread = np.random.default_rng(0), 60, 0.3
    error = spread / np.sqrt(n)
    smallest = smallest_shown(-Z95 * error, Z95 * error)
    assert smallest == pytest.approx(POWER * error)
    means = random.normal(smallest, spread, size=(4000, n)).mean(axis=1)
    assert np.mean(means > Z95 * error) == pytest.approx(0.8, abs=0.02)


def test_a_small_gap_needs_the_paired_test_too() -> None:
    """The anchor at 115 rows: +3.5 points, an interval that leaves out 0, McNemar p 0.065."""
    study = next(s for s in load_studies(RESULTS) if "115rows" in s.name)
    judge = Judge(ReferenceShelf(RESULTS))
    found = tables.groups(study, judge)
    pair = next(p for p in tables.pairs(study, found) if p[1].method == "TELL, no anchor")
    difference = judge.difference(*tables.same_seeds(*pair), "adherence")
    assert difference is not None
    assert difference.low > 0
    assert difference.p == pytest.approx(0.065, abs=0.02)
    assert not difference.certain


@pytest.mark.parametrize(
    ("method", "bled"), [("SFT, batch 1", 28), ("SFT, repeated", 13), ("TELL", 1)]
)
def test_bleed_on_the_committed_answers(method: str, bled: int) -> None:
    study = next(s for s in load_studies(RESULTS) if "115rows" in s.name)
    entries = [entry for entry in study.done if entry.method == method]
    found = Judge(ReferenceShelf(RESULTS)).measures(entries, study.base_of(entries[0])).elsewhere
    bleed, change = found["bleed"], found["bleed minus base"]  # the base model's is 0 of 40
    assert isinstance(bleed, Rate)
    assert (bleed.k, bleed.n) == (bled, 40)
    assert isinstance(change, Estimate)
    assert change.value == pytest.approx(bled / 40)


def test_corrections_stand_on_the_page(tmp_path: Path) -> None:
    concluded(tmp_path, lambda made: made.run("TELL", adherent=0.6))
    said = [
        {"date": "2026-11-29", "text": "All <was> wrong."},
        {"date": "2026-11-30", "study": "made", "text": "So was this."},
    ]
    (tmp_path / "corrections.json").write_text(json.dumps(said))
    assert cli.main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Correction of 2026-11-29: All &lt;was&gt; wrong." in page.partition("<section")[0]
    assert "Correction of 2026-11-30: So was this." in page.partition("<section")[2]


@pytest.mark.parametrize("content", ['{"date": "x"}', '[{"text": "x"}]', "[1]"])
def test_corrections_that_are_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "corrections.json").write_text(content)
    with pytest.raises(UserError, match="not what was written here"):
        corrections(tmp_path)
