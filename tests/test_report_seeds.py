"""Reports of several seeds, and of rows that are no test rows: nothing is said too loudly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tell_plugins.evaluation import intervals
from tell_plugins.evaluation.grids import to_csv
from tell_plugins.evaluation.intervals import Rate, counted
from tell_plugins.evaluation.significance import Floats, interval, mean_score, over_seeds
from tell_plugins.experiments import measures, plots, tables
from tell_plugins.experiments.conclusions import conclude
from tell_plugins.experiments.measures import Difference, Judge, Measures
from tell_plugins.experiments.results import ReferenceShelf, load_studies
from tests.made_results import MadeResults

SEEDS = [42, 43]


class Report:
    """What a report says of one made study."""

    def __init__(self, root: Path) -> None:
        [self.study] = load_studies(root)
        self.judge = Judge(ReferenceShelf(root))
        self.groups = tables.groups(self.study, self.judge)
        self.conclusions = conclude(self.study, self.groups, self.judge)
        self.shows = " ".join(self.conclusions.shows)
        self.not_shown = " ".join(self.conclusions.not_shown)
        self.measured = " ".join(self.conclusions.measured)

    def note(self, method: str) -> str:
        group = next(group for group in self.groups if group.method == method)
        return "; ".join(tables.notes(group, self.study))

    @property
    def compared(self) -> Any:
        records = tables.comparisons_table(self.study, self.groups, self.judge)
        frame = pd.read_csv(StringIO(to_csv(records))).fillna({"point": ""})
        return frame.set_index("comparison")


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., Report]:
    """Makes a study by a function and reads its report."""

    def made(fill: Callable[[MadeResults], None], seeds: list[int] = SEEDS, **plot: Any) -> Report:
        results = MadeResults(tmp_path)
        results.base()
        fill(results)
        results.index("made", "Made", seeds, **plot)
        return Report(tmp_path)

    return made


def _edit(root: Path, **values: Any) -> None:
    path = root / "sweeps" / "made.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, **values}))


# --- differences ---------------------------------------------------------------------------------


def test_seeds_of_both_signs_are_no_difference(report: Callable[..., Report]) -> None:
    """Pooled over rows it would be +8 points, certain."""

    def fill(made: MadeResults) -> None:
        made.run("TELL", adherent=0.50, seed=42)
        made.run("SFT", adherent=0.20, seed=42)
        made.run("TELL", adherent=0.20, seed=43)
        made.run("SFT", adherent=0.34, seed=43)

    found = report(fill)
    assert "adherence not told apart, the seeds disagree (+8.0 points [" in found.shows
    assert "by seed +30.0, -14.0" in found.shows
    assert found.compared.loc["TELL minus SFT", "adherence, by seed"] == "+30.0, -14.0"


def test_seeds_of_one_sign_are_told_one_by_one(report: Callable[..., Report]) -> None:
    def fill(made: MadeResults) -> None:
        for seed in SEEDS:
            made.run("TELL", adherent=0.60, seed=seed, loss=2.3)
            made.run("SFT", adherent=0.10, seed=seed, loss=2.6)

    found = report(fill)
    assert "adherence higher (+50.0 points [" in found.shows
    assert "by seed +50.0, +50.0" in found.shows
    assert "loss, style fit: lower (-0.29" in found.shows
    assert found.compared.loc["TELL minus SFT", "style fit, by seed"].startswith("-0.")


@pytest.mark.parametrize(
    ("by_seed", "certain"),
    [
        ((), True),
        ((0.1, 0.3), True),
        ((0.0, 0.3), True),
        ((-0.01, 0.3), False),
        ((0.18, 0.2, 0.22), True),
        ((0.01, 0.02, 0.6), False),  # a t-interval over the seeds holds 0
    ],
)
def test_a_difference_is_certain_when_rows_and_seeds_agree(
    by_seed: tuple[float, ...], certain: bool
) -> None:
    assert Difference(0.2, 0.1, 0.3, 100, by_seed).certain == certain
    assert not Difference(0.2, -0.1, 0.3, 100, by_seed).certain


def test_only_the_seeds_of_both_are_compared(report: Callable[..., Report]) -> None:
    def fill(made: MadeResults) -> None:
        made.run("TELL", adherent=0.6, seed=42, steps=8)
        made.run("SFT", adherent=0.1, seed=42, steps=8)
        made.run("SFT", adherent=0.9, seed=43, steps=26)

    found = report(fill)
    assert "TELL against SFT (equal steps, 8): adherence higher (+50.0" in found.shows
    assert "1 of 2 seeds are compared, those that both have" in found.shows
    assert found.compared.loc["TELL minus SFT", "equal steps"] == "yes"
    assert "With 1 seed the variance between seeds is not known" in found.not_shown


def test_failed_runs_are_named_with_their_seed(report: Callable[..., Report]) -> None:
    def fill(made: MadeResults) -> None:
        made.run("TELL", adherent=0.6)
        made.failed("TELL", 43)

    assert "1 of 3 runs failed: TELL, seed 43." in report(fill).measured


def test_three_seeds_of_thirds_do_not_vary() -> None:
    """1/3 is no binary fraction: its standard deviation over rows is not quite zero."""
    n = 200
    mine = np.column_stack([np.full(n, 1.0), np.full(n, 3.0)])
    theirs = np.column_stack([np.full(n, 2.0), np.full(n, 3.0)])
    assert intervals.correlation(mine, theirs) == 0
    found = intervals.share_difference(mine, theirs)
    assert found.low < found.value < found.high


# --- notes ---------------------------------------------------------------------------------------


def test_each_seed_may_give_its_own_constant(report: Callable[..., Report]) -> None:
    """Pooled, half the labels are "yes" and half "no"."""

    def fill(made: MadeResults) -> None:
        made.run("TELL", adherent=1.0, seed=42, constant="yes")
        made.run("TELL", adherent=1.0, seed=43, constant="no")
        made.run("SFT", adherent=1.0, seed=42, constant="no")
        made.run("SFT", adherent=1.0, seed=43)

    found = report(fill)
    assert (
        found.note("TELL") == "constant: 'yes' in 100 of 100, 'no' in 100 of 100 adherent answers"
    )
    assert found.note("SFT") == "constant in 1 of 2 seeds: 'no' in 100 of 100 adherent answers"
    assert "TELL: one and the same label in nearly every adherent answer" in found.not_shown
    assert "SFT: one and" not in found.not_shown


def test_a_no_op_of_one_seed_is_not_that_of_all(report: Callable[..., Report]) -> None:
    def fill(made: MadeResults) -> None:
        made.run("TELL", adherent=0.6, seed=42)
        made.run("SFT", adherent=0.0, seed=42, steps=1, no_op=True)
        made.run("SFT", adherent=0.3, seed=43, steps=3)

    found = report(fill)
    assert found.note("SFT").startswith("no-op in 1 of 2 seeds: nothing was trained")
    assert "base model by construction" not in found.not_shown


# --- who is compared -----------------------------------------------------------------------------


def test_other_cards_and_other_base_models_are_no_comparison(report: Callable[..., Report]) -> None:
    def fill(made: MadeResults) -> None:
        made.run("TELL", adherent=0.6)
        made.run("SFT", adherent=0.1)

    found = report(fill, [42])
    base, tell, sft = found.groups
    assert list(tables.pairs(found.study, found.groups)) == [(tell, base), (tell, sft)]
    other = replace(sft, entries=[sft.entries[0].model_copy(update={"card": "another"})])
    stranger = replace(base, entries=[base.entries[0].model_copy(update={"card": "another"})])
    assert list(tables.pairs(found.study, [stranger, tell, other])) == []


def test_a_comparison_is_named_by_the_keys_of_both(report: Callable[..., Report]) -> None:
    def fill(made: MadeResults) -> None:
        made.run("TELL", adherent=0.6)
        for copies in (1, 2, 3):
            made.run("SFT", adherent=0.1 * copies, at={"repeat": copies})

    found = report(fill, [42])
    assert "SFT at repeat=1 (equal steps, 20): adherence higher (+50.0" in found.shows
    assert set(found.compared["point"]) == {"", "repeat=1", "repeat=2", "repeat=3"}


def test_nothing_compared_is_said(report: Callable[..., Report]) -> None:
    found = report(lambda made: made.run("SFT", adherent=0.1) and None, [42])
    assert "Nothing is compared: no finished run of TELL" in found.not_shown
    assert "differences are tested" not in " ".join(found.conclusions.answers)


# --- validation rows -----------------------------------------------------------------------------


def test_validation_rows_are_called_so(report: Callable[..., Report], tmp_path: Path) -> None:
    def fill(made: MadeResults) -> None:
        for amount in (1000, 3000):
            at = {"task": f"{amount // 100}rows"}
            made.run("TELL", adherent=0.5, at=at, task=amount)

    on_test = report(fill, [42], x="task_tokens", paper="task_tokens")
    assert "Stars are the paper's numbers" in _captions(on_test)
    assert len(tables.published_table(on_test.study)) > 0
    _edit(tmp_path, evaluate={"split": "validation", "decoding": "greedy", "rows": 100})
    found = Report(tmp_path)
    assert "Intervals are over validation rows." in found.not_shown
    assert "No test row was asked" in found.not_shown
    captions = _captions(found)
    assert "over validation rows" in captions
    assert "test rows" not in captions
    assert "Stars" not in captions
    assert len(tables.published_table(found.study)) == 0


def _captions(found: Report) -> str:
    drawn = plots.pictures(found.study, found.groups, found.judge)
    return " ".join(picture.caption for picture in drawn)


def test_a_single_point_of_a_curve_is_a_mark(report: Callable[..., Report]) -> None:
    def fill(made: MadeResults) -> None:
        made.run("TELL", adherent=0.5, at={"task": "10rows"}, task=1000)
        made.run("general only", adherent=0.0, task=0)

    found = report(fill, [42], x="task_tokens")
    axis = plots.curve_figure(found.study, found.groups).axes[0]
    assert [c.get_label() for c in axis.containers] == ["TELL"]
    assert {line.get_label() for line in axis.lines if line.get_linestyle() == "--"} == {
        "base model",
        "general only",
    }


# --- numbers -------------------------------------------------------------------------------------


def _of_seeds(values: list[float], rates: dict[str, Rate]) -> Measures:
    return Measures([], {**rates}, values, {}, None, measures.Counter(), {})


def test_an_interval_over_rows_and_seeds_sees_seeds_that_differ() -> None:
    """Each seed alone is sure of its difference; they are of both signs."""
    rng = np.random.default_rng(0)

    def rows(share: float) -> Floats:
        return np.stack([(rng.random(400) < share).astype(float), np.ones(400)], axis=1)

    half = rows(0.5)
    alike = [(rows(0.6), half) for _ in range(3)]
    apart = [(rows(share), half) for share in (0.3, 0.6, 0.9)]
    (low, high), (lower, higher) = (over_seeds(pairs, mean_score) for pairs in (alike, apart))
    assert 0.03 < low < high < 0.23
    assert lower < -0.05
    assert higher > 0.25
    one = over_seeds(alike[:1], mean_score)  # of one seed it is the bootstrap over rows
    both = np.hstack([alike[0][0], half])
    rows_alone = interval(both, lambda sums: mean_score(sums[:, :2]) - mean_score(sums[:, 2:]))
    assert one == pytest.approx(rows_alone, abs=0.01)


def test_an_interval_over_seeds_needs_three_that_differ() -> None:
    rates = {"adherence": counted(1, 2)}
    assert _of_seeds([0.1, 0.9], rates).over_seeds is None
    assert _of_seeds([0.0, 0.0, 0.0], rates).over_seeds is None
    found = _of_seeds([0.0, 0.1, 0.9], rates).over_seeds
    assert found is not None
    assert (found.low, found.high) == (0.0, 1.0)  # a share
    score = _of_seeds([10.0, 20.0, 60.0], {}).over_seeds
    assert score is not None
    assert score.low is not None
    assert score.low < 0


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([(float("nan"), 10)] * 40, "it is no number, so a run diverged"),
        ([(21.0, 10)] * 2, "of 2 rows: too few to tell"),
        ([(21.0, 10)] * 40, "lower (-0.400 [-0.400, -0.400], 40 rows, which show 0.000 or more)"),
    ],
)
def test_a_loss_that_tells_nothing_is_no_verdict(
    report: Callable[..., Report],
    tmp_path: Path,
    losses: list[tuple[float, int]],
    said: str,
) -> None:
    def fill(made: MadeResults) -> None:
        made.run("TELL", adherent=0.6)
        made.run("SFT", adherent=0.1)

    report(fill, [42])
    for run, of in (("TELL--42", losses), ("SFT--42", [(25.0, 10)] * len(losses))):
        [path] = (tmp_path / "runs" / run).rglob("losses.jsonl")
        lines = [f'{{"loss_sum": {s}, "tokens": {n}, "rows": {len(of)}}}\n' for s, n in _json(of)]
        path.write_text("".join(lines))
    assert said in Report(tmp_path).shows


def _json(losses: list[tuple[float, int]]) -> list[tuple[str, int]]:
    return [(json.dumps(loss), tokens) for loss, tokens in losses]


def test_open_runs_name_no_model(report: Callable[..., Report]) -> None:
    def fill(made: MadeResults) -> None:
        made.run("TELL", adherent=0.6)
        made.entries.append({**made.entries[0], "method": "SFT", "run": "not-there"})

    found = report(fill, [42])
    assert found.measured.startswith("Model: made. Task:")
    assert "1 of 3 runs not done yet: SFT." in found.measured
