"""The scorers: labels, intervals, the content of JSON, a metric that is one file and one line."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tell_plugins.core.cards import load_card
from tell_plugins.evaluation import scorers, scoring
from tell_plugins.evaluation.differences import difference, measure_of
from tell_plugins.evaluation.during_training import score_texts
from tell_plugins.evaluation.intervals import Draws, Estimate, counted, rate, wilson
from tell_plugins.evaluation.judged import Case, Judged, mean
from tell_plugins.evaluation.scorers import json_answers, json_readings
from tell_plugins.evaluation.scoring import judged, load_scored, spaced
from tests.conftest import Cli, MakeCard, message_of
from tests.made_results import MadeResults
from tests.saved_answers import counts, judged_labels, save_answers

ANY_OBJECT = {"type": "object", "required": ["name"]}


class Shown:
    """What every verb shows of a sweep with the methods TELL and SFT and made answers."""

    def __init__(self, root: Path, card: str, cli: Cli, good: list[str], bad: list[str]) -> None:
        made = MadeResults(root / "sweep", card=card)
        self.tell, self.sft = made.answered("TELL", good), made.answered("SFT", bad)
        made.index("made", "Made", [42])
        self.root, folders, self._cli = made.root, [self.tell, self.sft], cli
        for folder in folders:
            scoring.write(folder)
        self.printed = cli(0, "compare", *folders, "--resamples", 100, "--out", root / "out")
        found = json.loads((root / "out" / "comparison.json").read_text())["differences"]
        self.differences = {(one["scorer"], one["measure"]): one["value"] for one in found}

    def table(self, name: str) -> str:
        """A table of the report."""
        self._cli(0, "report", self.root, "--out", self.root / "out")
        return (self.root / "out" / "tables" / f"made_{name}.csv").read_text()

    @property
    def methods(self) -> tuple[dict[str, str], dict[str, str]]:
        """The rows of TELL and SFT in the report's table of methods."""
        head, *lines = (line.split(",") for line in self.table("methods").splitlines()[:3])
        tell, sft = (dict(zip(head, line, strict=True)) for line in lines)
        assert (tell["method"], sft["method"]) == ("TELL", "SFT")
        return tell, sft


RIGHT = ["ham", "spam", "ham", "ham", "spam", "ham"]
SAID = ["ham", " spam\n", "Ham", "spam", "ham", "ham, I think"]


@pytest.fixture
def mail(make_card) -> str:
    make_card(
        "mail",
        train=[{"q": "Win!", "r": "spam"}, {"q": "Hello", "r": "ham"}],
        test=[{"q": f"mail {i}", "r": label} for i, label in enumerate(RIGHT)],
        metric="label",
    )
    return "mail"


def test_closed_labels_have_form_and_content(mail, tmp_path):
    scores = scoring.score(save_answers(tmp_path / "a", mail, SAID, cut=[5]))
    found = scores.readings["label"]
    assert found.failures == {"truncated": 1, "no_label": 1}
    assert {n: (r.k, r.n) for n, r in found.measures.items() if r.k is not None} == {
        "adherence": (4, 6),
        "accuracy": (2, 6),
        "accuracy_given_the_form": (2, 4),
        "recall_of_ham": (1, 4),
        "recall_of_spam": (1, 2),
    }
    shown = scores.headline
    assert shown["balanced accuracy"].value == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert shown["accuracy given the form"].value == 0.5
    assert shown["accuracy of a constant"].value == pytest.approx(4 / 6)
    assert shown["most frequent label"].value == pytest.approx(2 / 6)


def test_labels_in_compare_report_and_training(mail, tmp_path, cli):
    shown = Shown(tmp_path, mail, cli, RIGHT, SAID)
    assert shown.differences["label", "adherence"] == pytest.approx(-2 / 6)
    assert shown.differences["label", "balanced_accuracy"] == pytest.approx(0.375 - 1)
    assert "recall of spam" in shown.printed
    assert "always ham" in shown.printed
    _, sft = shown.methods
    assert float(sft["balanced accuracy"]) == pytest.approx(0.375)
    assert float(sft["accuracy given the form"]) == 0.5
    assert float(sft["recall of spam"]) == 0.5
    assert "balanced accuracy, points" in shown.table("comparisons")
    during = score_texts(load_card(mail), [*SAID, "x"], [*RIGHT, "a general row's long answer"])
    assert during["task_rows"] == 6.0
    assert during["label_adherence"] == pytest.approx(4 / 6)
    assert during["balanced_accuracy"] == pytest.approx(0.375)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}, True),
        ({"a": True}, {"a": 1}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
        ({"a": None}, {}, False),
        ({"a": "é"}, {"a": "\u00e9"}, True),
    ],
)
def test_equal_json_is_equal_text(one, other, equal):
    assert (json_answers.canonical(one) == json_answers.canonical(other)) is equal


def test_fields_are_paths_and_lists_are_multisets():
    value = {"a": {"b": 1}, "c": [2, 2, {"d": "x"}], "e": [], "f": None}
    assert json_answers.pairs(value) == Counter(
        {("a.b", "1"): 1, ("c[]", "2"): 2, ("c[].d", '"x"'): 1, ("e", "[]"): 1, ("f", "null"): 1}
    )


def test_json_without_a_label_has_content(make_card, tmp_path, cli):
    """Three of four answers have the form; one is right, one half right, one of another name."""
    right = [json.dumps({"name": "A", "tags": ["x", "y"]})] * 4
    rows = [{"q": f"q{i}", "r": text} for i, text in enumerate(right)]
    make_card("fields", train=rows[:1], test=rows, schema=ANY_OBJECT)
    said = [
        '{"tags": ["x", "y"], "name": "A"}',
        '{"name": "A", "tags": ["y", "z", "z"]}',
        '{"name": "B"}',
        "The name is A.",
    ]
    shown = Shown(tmp_path, "fields", cli, right, said)
    scores = scoring.score(shown.sft)
    assert counts(scores.headline["exact match"]) == (1, 4)
    assert counts(scores.headline["exact match given the form"]) == (1, 3)
    f1 = scores.headline["field f1"]
    assert scores.headline["field precision"].value == pytest.approx(5 / 8)  # of 3 + 4 + 1 pairs
    assert scores.headline["field recall"].value == pytest.approx(5 / 12)
    assert f1.value == pytest.approx(10 / 20)
    assert f1.low < 0.5
    assert shown.differences["strict", "exact_match"] == -0.75
    assert shown.differences["strict", "field_f1"] == pytest.approx(-0.5)
    by_field = scores.first.numbers  # 2 of 3 names given are right, 3 of 5 tags
    assert by_field["field_precision:name"].value == pytest.approx(2 / 3)
    assert by_field["field_recall:tags"].value == pytest.approx(3 / 8)
    assert "fields, test: strict, by field, in %" in shown.printed
    assert "field f1" in shown.table("methods")
    assert "field f1, points" in shown.table("comparisons")


def judge_tokens(case: Case) -> dict[str, Judged]:
    """A new metric: F1 of the words of an answer against those of its reference."""
    values = []
    for answer, right in zip(case.answers, case.right, strict=True):
        said, true = Counter(answer.text.split()), Counter(right.split())
        values.append(2 * (said & true).total() / max(1, said.total() + true.total()))
    return {"words": Judged(case.rows, {"word_f1": mean(values)})}


def test_a_new_metric_is_one_file_and_one_line(make_card, tmp_path, monkeypatch, cli):
    line = scorers.Scorer("text", judge_tokens)
    monkeypatch.setattr(scorers, "SCORERS", [*scorers.SCORERS, line])
    rows = [{"q": f"q{i}", "r": f"It is number {i}"} for i in range(6)]
    make_card("free", train=rows[:1], test=rows, metric="text")
    half = [f"It is, {i}" for i in range(6)]  # two of four words, three given
    shown = Shown(tmp_path, "free", cli, [r["r"] for r in rows], half)
    assert scoring.score(shown.sft).headline["word f1"].value == pytest.approx(4 / 7)
    assert shown.differences["words", "word_f1"] == pytest.approx(4 / 7 - 1)
    assert "word f1" in shown.printed
    tell, sft = shown.methods
    assert float(tell["word f1"]) == 1.0
    assert float(sft["word f1"]) == pytest.approx(4 / 7, abs=1e-6)


def test_every_answer_is_judged_once(make_card, tmp_path, monkeypatch, cli):
    """Each reader of JSON sees each answer once, as often as a process scores and compares it."""
    rows = [{"q": f"q{i}", "r": '{"name": "A"}'} for i in range(5)]
    make_card("once", train=rows, test=rows, schema=ANY_OBJECT)
    seen: Counter[str] = Counter()
    counted: dict[Any, Any] = {}

    def counting(scorer: json_readings.Reading) -> json_readings.Reading:
        def judge(*arguments: Any) -> json_readings.Verdict:
            seen[scorer.judge.__name__] += 1
            return scorer.judge(*arguments)

        return scorer._replace(judge=counted.setdefault(scorer.judge, judge))

    monkeypatch.setattr(json_answers, "READINGS", [counting(s) for s in json_readings.READINGS])
    shown = Shown(tmp_path, "once", cli, ["{}"] * 5, ["no"] * 5)
    assert [scoring.score(folder).rows for folder in (shown.tell, shown.sft)] == [5, 5]
    assert {"strict", "lenient"} <= set(seen)
    assert set(seen.values()) == {10}
    seen.clear()
    shown.table("methods")
    assert seen == {"strict": 10, "lenient": 10}


def test_a_label_of_two_words_keeps_its_name_in_tables():
    assert spaced("recall_of_card arrival") == "recall of card arrival"
    assert spaced("comet wmt22") == "COMET"


# --- labels, baselines, intervals -----------------------------------------------------------------

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
    rows = [{"q": "a", "r": "good"}, {"q": "b", "r": "splendid"}]
    make_card("odd", train=rows, test=rows, metric="label", answer={"labels": ["good", "bad"]})
    for name, text in ((card, '{"mood": "good"}'), ("odd", "good")):
        caught = message_of(scoring.score, save_answers(tmp_path / name, name, [text] * 2))
        assert "line 2: the response's label is 'splendid'" in caught


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
