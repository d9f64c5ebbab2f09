"""Labels against scikit-learn and by hand; baselines on the official rows; intervals."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.sources import open_task
from tell_plugins.evaluation import scoring, significance
from tell_plugins.evaluation.intervals import Rate, counted, rate, wilson
from tell_plugins.evaluation.labels import LabelScores, Truth, score_labels
from tests.conftest import MakeCard
from tests.saved_answers import save_answers

YES_NO = ["yes", "no"]


def halu_answer(label: str) -> str:
    return json.dumps({"thought": "Because.", "hallucination": label})


def strict_labels(folder: Path) -> LabelScores:
    scores = scoring.score(folder)
    assert scores.json is not None
    found = scores.json["strict"].labels
    assert found is not None
    return found


# --- the official test rows ----------------------------------------------------------------------


def test_baselines_on_the_official_rows(real_home: Path, tmp_path: Path) -> None:
    rows = len(open_task(load_card("halu_cot_json"), "test"))
    folder = save_answers(tmp_path / "a", "halu_cot_json", [halu_answer("no")] * rows)
    found = strict_labels(folder)
    assert found.true_counts == {"yes": 282, "no": 1224}
    assert (found.positive, found.baseline.name) == ("yes", "always_no")
    base = found.baseline.metrics
    assert (base.accuracy.k, base.accuracy.n) == (1224, 1506)

    # always answering "no" is that baseline, with all that follows from it
    assert found.all == base
    assert found.adherent == base
    assert base.accuracy.value == pytest.approx(0.812749, abs=1e-6)
    assert base.balanced_accuracy.value == 0.5
    assert base.f1.value == 0.0
    assert (base.most_frequent, base.most_frequent_share.value) == ("no", 1.0)


def test_always_yes_on_the_official_rows(real_home: Path, tmp_path: Path) -> None:
    folder = save_answers(tmp_path / "a", "halu_cot_json", [halu_answer("yes")] * 1506)
    found = strict_labels(folder).all
    assert (found.accuracy.k, found.accuracy.n) == (282, 1506)
    assert found.f1.value == pytest.approx(2 * 282 / (282 + 1506))
    assert found.balanced_accuracy.value == 0.5


def test_answers_that_are_not_adherent_count_as_wrong(real_home: Path, tmp_path: Path) -> None:
    task = open_task(load_card("halu_cot_json"), "test")
    texts = [halu_answer(label) for label in task.responses]
    yes = [row for row, label in enumerate(task.responses) if label == "yes"]
    for row in yes[:100]:
        texts[row] = "Yes"
    found = strict_labels(save_answers(tmp_path / "a", "halu_cot_json", texts))
    assert found.adherent.n == 1406
    assert found.adherent.accuracy.value == found.adherent.f1.value == 1.0
    assert (found.all.accuracy.k, found.all.accuracy.n) == (1406, 1506)
    assert (found.recalls["yes"].k, found.recalls["yes"].n) == (182, 282)
    assert found.all.balanced_accuracy.value == pytest.approx((182 / 282 + 1) / 2)
    assert (found.all.most_frequent_share.k, found.all.most_frequent_share.n) == (1224, 1506)


def test_the_first_1000_official_rows_are_mostly_no(real_home: Path, tmp_path: Path) -> None:
    folder = save_answers(tmp_path / "a", "halu_cot_json", [halu_answer("no")] * 1506)
    scores = scoring.score(folder)
    assert scores.json is not None
    found = scores.json["official"].labels
    assert found is not None
    assert found.true_counts == {"yes": 236, "no": 764}


# --- arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [YES_NO, ["a", "b", "c"], ["a", "b", "c", "d", "e"]])
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learns(classes: list[str], seed: int) -> None:
    from sklearn import metrics as sk

    draw = random.Random(seed)
    truth = Truth(draw.choices(classes, k=200), classes)
    given = [draw.choice([*classes, None, right, right]) for right in truth.of]
    rows = list(range(200))
    found = score_labels(given, rows, truth).all
    said = ["none" if label is None else label for label in given]
    if len(classes) == 2:
        options = {"labels": ["yes"], "average": "macro", "zero_division": 0}
    else:
        options = {"labels": classes, "average": "macro", "zero_division": 0}
    assert found.accuracy.value == pytest.approx(sk.accuracy_score(truth.of, said))
    assert found.balanced_accuracy.value == pytest.approx(
        np.mean(
            [
                np.mean([s == c for s, t in zip(said, truth.of, strict=True) if t == c])
                for c in classes
            ]
        )
    )
    assert found.f1.value == pytest.approx(sk.f1_score(truth.of, said, **options))


def test_intervals_hold_the_value_and_are_the_same_each_time() -> None:
    draw = random.Random(2)
    truth = Truth(draw.choices(YES_NO, k=100), YES_NO)
    given: list[str | None] = [t if draw.random() < 0.8 else "no" for t in truth.of]
    first, second = (score_labels(given, range(100), truth) for _ in range(2))
    assert first == second
    for found in (first.all.balanced_accuracy, first.all.f1):
        assert found.low is not None
        assert found.high is not None
        assert found.value is not None
        assert found.low < found.value < found.high


def test_no_adherent_answer_leaves_scores_undefined() -> None:
    truth = Truth(["yes", "no"], YES_NO)
    found = score_labels([None, None], [0, 1], truth)
    assert found.adherent.n == 0
    assert found.adherent.accuracy.value is None
    assert found.adherent.balanced_accuracy.value is None
    assert found.all.accuracy.value == 0.0
    assert found.all.most_frequent is None


# --- reference labels ----------------------------------------------------------------------------


def labelled(make_card: MakeCard, responses: list[str], rule: object) -> str:
    folder = make_card(
        "mood",
        train=[{"q": "q", "r": responses[0]}],
        test=[{"q": f"q{i}", "r": response} for i, response in enumerate(responses)],
        metric="json",
        answer={"schema": "s.json", "label": "mood"},
    )
    schema = {"type": "object", "properties": {"mood": rule}, "required": ["mood"]}
    (folder / "s.json").write_text(json.dumps(schema))
    return "mood"


def test_labels_are_taken_from_objects_and_from_bare_text(
    make_card: MakeCard, tmp_path: Path
) -> None:
    responses = ['{"mood": "good"}', "bad", ' {"mood": "odd", "x": 1}', "good\n"]
    card = labelled(make_card, responses, {"enum": ["good", "bad", "odd"]})
    texts = ['{"mood": "good"}', '{"mood": "good"}', '{"mood": "odd"}', '{"mood": "best"}']
    found = strict_labels(save_answers(tmp_path / "a", card, texts))
    assert found.true_counts == {"good": 2, "bad": 1, "odd": 1}
    assert found.positive is None  # three labels: macro averages
    assert (found.all.accuracy.k, found.adherent.accuracy.k, found.adherent.n) == (2, 2, 3)
    assert found.baseline.name == "always_good"


def test_labels_that_are_no_text(make_card: MakeCard, tmp_path: Path) -> None:
    card = labelled(make_card, ['{"mood": true}', "false"], {"enum": [True, False]})
    texts = ['{"mood": true}', '{"mood": "false"}']
    found = strict_labels(save_answers(tmp_path / "a", card, texts))
    assert found.true_counts == {"true": 1, "false": 1}
    assert (found.adherent.n, found.all.accuracy.k) == (1, 1)  # "false" is not false


def test_labels_of_an_open_schema_are_those_of_the_references(
    make_card: MakeCard, tmp_path: Path
) -> None:
    card = labelled(make_card, ["b", "a", "b"], {"type": "string"})
    found = strict_labels(save_answers(tmp_path / "x", card, ['{"mood": "b"}'] * 3))
    assert found.labels == ["a", "b"]
    assert found.all.accuracy.k == 2


def test_a_reference_without_an_allowed_label_is_named(make_card: MakeCard, tmp_path: Path) -> None:
    card = labelled(make_card, ["good", "splendid"], {"enum": ["good", "bad"]})
    with pytest.raises(UserError) as caught:
        scoring.score(save_answers(tmp_path / "a", card, ['{"mood": "good"}'] * 2))
    assert "splendid" in str(caught.value)
    assert "line 2" in str(caught.value)


# --- intervals and significance ------------------------------------------------------------------


def test_wilson_intervals_against_published_values() -> None:
    # Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for k, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)


def test_rates_of_nothing_and_of_everything() -> None:
    assert rate([]) == Rate(0, 0, None, 0.0, 1.0)
    assert counted(0, 0).value is None
    assert rate([True] * 3).value == 1.0
    # ten answers to one row are worth one row
    assert rate([True] * 10, [0] * 10).low == pytest.approx(wilson(1, 1)[0])


def test_wilson_covers_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(0)
    for share in (0.05, 0.5, 0.9):
        hits = generator.binomial(50, share, 2000)
        inside = [low <= share <= high for low, high in (wilson(k, 50) for k in hits)]
        assert 0.92 < np.mean(inside) < 0.98


def test_the_paired_bootstrap_against_the_plain_one() -> None:
    """The matrix product gives what drawing rows one by one gives."""
    generator = np.random.default_rng(3)
    a, b = generator.random(80), generator.random(80)
    found = significance.paired(
        significance.mean_stats(a, range(80)),
        significance.mean_stats(b, range(80)),
        significance.mean_score,
        resamples=5000,
    )
    draws = generator.integers(0, 80, (5000, 80))
    plain = (a - b)[draws].mean(axis=1)
    assert found.value == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.01)
    assert found.n == 80


def test_significance_of_equal_of_better_and_of_unsure_systems() -> None:
    right = significance.mean_stats([1] * 40, range(40))
    wrong = significance.mean_stats([0] * 40, range(40))
    half = significance.mean_stats([1, 0] * 20, range(40))
    other = significance.mean_stats([0, 1] * 20, range(40))

    def between(x: significance.Floats, y: significance.Floats) -> significance.Difference:
        return significance.paired(x, y, significance.mean_score, resamples=1000)

    same = between(half, half)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    better = between(right, wrong)
    assert (better.value, better.low, better.high) == (1, 1, 1)
    assert better.p == pytest.approx(1 / 1001)
    unsure = between(half, other)
    assert unsure.low < 0 < unsure.high
    assert unsure.p > 0.5
    assert between(half, other) == unsure  # seeded


def test_interval_and_p_are_about_right_under_no_difference() -> None:
    generator = np.random.default_rng(4)
    missed = unlikely = 0
    for _ in range(200):
        a, b = generator.random((2, 60)) < 0.7
        found = significance.paired(
            significance.mean_stats(a, range(60)),
            significance.mean_stats(b, range(60)),
            significance.mean_score,
            resamples=1000,
        )
        missed += found.low > 0 or found.high < 0
        unlikely += found.p < 0.05
    assert 1 <= missed <= 22  # 5 % of 200, give or take
    assert 1 <= unlikely <= 18


def test_rows_must_be_paired() -> None:
    short = significance.mean_stats([1], [0])
    long = significance.mean_stats([1, 0], [0, 1])
    with pytest.raises(ValueError, match="not the same rows"):
        significance.paired(short, long, significance.mean_score)
