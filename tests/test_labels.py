"""Labels against scikit-learn and by hand; baselines on the official rows; intervals."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tell_plugins.evaluation import scoring
from tell_plugins.evaluation.differences import difference, measure_of
from tell_plugins.evaluation.intervals import Draws, Estimate, counted, rate, wilson
from tell_plugins.evaluation.judged import mean
from tell_plugins.evaluation.scoring import judged, load_scored
from tests.conftest import MakeCard, message_of
from tests.saved_answers import counts, judged_labels, save_answers

YES_NO = ["yes", "no"]


def halu_answer(label: str) -> str:
    return json.dumps({"thought": "Because.", "hallucination": label})


def strict(folder: Path) -> dict[str, Estimate]:
    """Every measure of the strict reading."""
    found = scoring.score(folder).readings["strict"]
    return found.numbers


def test_constant_answers_on_the_official_rows(real_home, tmp_path):
    """282 of 1,506 rows are 'yes', of the first 1,000 that the published script reads 236."""
    found = {}
    for label in YES_NO:
        answers = [halu_answer(label)] * 1506
        found[label] = scoring.score(save_answers(tmp_path / label, "halu_cot_json", answers))
        measures = strict(tmp_path / label)
        yes = label == "yes"
        assert counts(measures["accuracy"]) == (282 if yes else 1224, 1506)
        assert measures["balanced_accuracy"].value == 0.5
        f1 = 2 * 282 / (282 + 1506) if yes else 0.0
        assert measures["f1"].value == pytest.approx(f1)
        assert counts(measures["accuracy_given_the_form"]) == counts(measures["accuracy"])
    # always answering "no" is the baseline, with all that follows from it
    no = found["no"]
    assert no.constant.text == found["yes"].constant.text == "always no"
    assert no.constant.judged.measures == no.readings["strict"].measures
    most = no.readings["strict"].most_frequent
    assert (most.text, most.share.value) == ("no", 1.0)
    scored = load_scored(tmp_path / "no")
    assert Counter(judged(scored)["official"].right) == {"yes": 236, "no": 764}


def of_labels(given: list[str | None], right: list[str], labels: list[str]) -> dict[str, Estimate]:
    judged = judged_labels(given, right, labels)
    return {name: column.estimate(judged.rows) for name, column in judged.columns.items()}


@pytest.mark.parametrize("classes", [YES_NO, ["a", "b", "c"], ["a", "b", "c", "d", "e"]])
def test_scores_equal_scikit_learns(classes):
    from sklearn import metrics as sk

    draw = random.Random(len(classes))
    truth = draw.choices(classes, k=200)
    given = [draw.choice([*classes, None, right, right]) for right in truth]
    found = of_labels(given, truth, classes)
    said = ["none" if label is None else label for label in given]
    some = classes[:1] if len(classes) == 2 else classes
    recalls = sk.recall_score(truth, said, labels=classes, average=None, zero_division=0)
    f1 = sk.f1_score(truth, said, labels=some, average="macro", zero_division=0)
    assert found["accuracy"].value == pytest.approx(sk.accuracy_score(truth, said))
    assert found["balanced_accuracy"].value == pytest.approx(np.mean(recalls))
    assert found["f1"].value == pytest.approx(f1)
    assert of_labels(given, truth, classes) == found  # seeded
    for name in ("balanced_accuracy", "f1"):
        assert found[name].low < found[name].value < found[name].high


def test_no_adherent_answer_leaves_scores_undefined():
    found = of_labels([None, None], ["yes", "no"], YES_NO)
    assert found["accuracy_given_the_form"].value is None
    assert found["accuracy"].value == 0.0


def labelled(make_card: MakeCard, responses: list[str], rule: object) -> str:
    schema = {"type": "object", "properties": {"mood": rule}, "required": ["mood"]}
    rows = [{"q": f"q{i}", "r": response} for i, response in enumerate(responses)]
    make_card("mood", train=rows[:1], test=rows, schema=schema, label="mood")
    return "mood"


MIXED = ['{"mood": "good"}', "bad", ' {"mood": "odd", "x": 1}', "good\n"]  # objects and bare text


@pytest.mark.parametrize(
    ("rule", "responses", "moods", "accuracy", "given_the_form", "constant"),
    [
        ({"enum": ["good", "bad", "odd"]}, MIXED, ["good", "good", "odd", "best"], 2, 3, "good"),
        # the text "false" is not false
        ({"enum": [True, False]}, ['{"mood": true}', "false"], [True, "false"], 1, 1, "true"),
        ({"type": "string"}, ["b", "a", "b"], ["b"] * 3, 2, 3, "b"),
    ],
)
def test_labels_are_those_of_the_schema_else_of_the_references(
    rule, responses, moods, accuracy, given_the_form, constant, make_card, tmp_path
):
    texts = [json.dumps({"mood": mood}) for mood in moods]
    folder = save_answers(tmp_path / "a", labelled(make_card, responses, rule), texts)
    scores, found = scoring.score(folder), strict(folder)
    assert counts(found["accuracy"]) == (accuracy, len(moods))
    assert counts(found["accuracy_given_the_form"]) == (accuracy, given_the_form)
    assert scores.constant.text == f"always {constant}"
    assert found["balanced_accuracy"].value == 0.5


def test_a_reference_without_an_allowed_label_is_named(make_card, tmp_path):
    card = labelled(make_card, ["good", "splendid"], {"enum": ["good", "bad"]})
    caught = message_of(scoring.score, save_answers(tmp_path / "a", card, ['{"mood": "good"}'] * 2))
    assert "splendid" in caught
    assert "line 2" in caught


def test_wilson_intervals_against_published_values() -> None:
    # Newcombe (1998), table I, method 3
    published = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605)}
    published |= {(0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718), (20, 20): (1 - 0.1611, 1.0)}
    for given, expected in published.items():
        assert wilson(*given) == pytest.approx(expected, abs=5e-5)
    assert rate([]) == counted(0, 0) == Estimate(None, 0.0, 1.0, 0, 0)
    # ten answers to one row are worth one row
    assert rate([True] * 10, [0] * 10).low == pytest.approx(wilson(1, 1)[0])


def between(x: Any, y: Any, resamples: int = 1000) -> Any:
    """The difference of two systems of which each answers each row once."""
    sides = (measure_of(range(len(side)), mean(side)) for side in (x, y))
    return difference(*sides, Draws(resamples))


def test_the_paired_bootstrap_against_the_plain_one():
    """The matrix product gives what drawing rows one by one gives."""
    generator = np.random.default_rng(3)
    a, b = generator.random(80), generator.random(80)
    found = between(a, b, resamples=5000)
    draws = generator.integers(0, 80, (5000, 80))
    plain = (a - b)[draws].mean(axis=1)
    assert found.value == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.01)
    assert found.n == 80


def test_interval_and_p_are_about_right_under_no_difference():
    half, other = [1, 0] * 20, [0, 1] * 20
    same, unsure = between(half, half), between(half, other)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert unsure.low < 0 < unsure.high
    assert between(half, other) == unsure  # seeded
    generator = np.random.default_rng(4)
    pairs = [generator.random((2, 60)) < 0.7 for _ in range(200)]
    found = [between(*pair) for pair in pairs]
    assert 1 <= sum(one.low > 0 or one.high < 0 for one in found) <= 22  # 5 % of 200, give or take
    assert 1 <= sum(one.p < 0.05 for one in found) <= 18
