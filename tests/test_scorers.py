"""The scorers: closed labels, the content of JSON, and a metric that is one file and one line."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.core.cards import load_card
from tell_plugins.evaluation import scorers, scoring
from tell_plugins.evaluation.during_training import score_texts
from tell_plugins.evaluation.judged import Case, Judged, mean
from tell_plugins.evaluation.scorers import json_answers, json_readings
from tell_plugins.evaluation.scoring import spaced
from tests.conftest import Cli, message_of
from tests.made_results import MadeResults
from tests.saved_answers import counts, save_answers

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


def test_a_response_that_is_no_label_is_named(make_card, tmp_path):
    rows = [{"q": "a", "r": "no"}, {"q": "b", "r": "perhaps"}]
    make_card("odd", train=rows, test=rows, metric="label", answer={"labels": ["yes", "no"]})
    folder = save_answers(tmp_path / "a", "odd", ["no", "no"])
    assert "line 2: the response's label is 'perhaps'" in message_of(scoring.score, folder)


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
