"""Translation: openings, alignment, sacrebleu's own numbers, baselines, the fixed examples."""

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tell_plugins.core.cards import load_card
from tell_plugins.core.sources import open_task
from tell_plugins.evaluation import scoring
from tell_plugins.evaluation.scorers import translation
from tell_plugins.evaluation.scorers.translation import (
    documents,
    reference_opening,
    strip_opening,
)
from tell_plugins.evaluation.scoring import load_scored
from tests.saved_answers import save_answers

OPENING = "Here is the translation: \n\n "
DOCUMENTS = [
    ("One house\nTwo red houses\nThe end", "Eitt hús\nTvö rauð hús\nEndir sögunnar"),
    ("A dog barks\nA cat sleeps all day", "Hundur geltir\nKötturinn sefur allan daginn"),
    ("Rain again today", "Aftur rigning í dag"),
]
REFERENCES = [OPENING + reference for _, reference in DOCUMENTS]


@pytest.fixture
def card(make_card) -> str:
    rows = [{"q": s, "r": OPENING + r} for s, r in DOCUMENTS]
    make_card("lines", train=rows, test=rows, metric="translation")
    return "lines"


Found = dict[str, dict[str, Any]]


def scored_as(folder: Path) -> tuple[Found, dict[str, int]]:
    """Every measure by unit, of a rate its count; and how answers have other lines."""
    scores = scoring.write(folder)
    found = {
        unit: {
            name: number if number.k is None else number.k for name, number in part.numbers.items()
        }
        for unit, part in scores.readings.items()
    }
    return found, scores.first.failures


def test_the_opening_is_what_all_references_share_in_front():
    assert reference_opening(REFERENCES) == OPENING
    assert reference_opening(["Sure: a b", "Sure: a c"]) == "Sure: "
    assert reference_opening(["The house", "The horse"]) == ""  # words, not an opening
    assert reference_opening(["Sure: only one"]) == ""
    assert reference_opening(["a", "b"]) == ""
    assert reference_opening(["\n\na", "\n\nb"]) == ""


def test_the_opening_of_the_official_references(real_home):
    task = open_task(load_card("en_is_news"), "test")
    opening = "Sure, here is the Icelandic translation: \n\n "
    assert reference_opening(task.responses) == opening
    stripped = [strip_opening(response, opening) for response in task.responses]
    assert all(had for _, had in stripped)
    lines = [len(text.split("\n")) for text, _ in stripped]
    assert lines == [len(source.split("\n")) for source in task.plain]
    assert sum(lines) == 1000


def test_failures_of_alignment_are_counted_and_scored(card, tmp_path):
    texts = [
        OPENING + "Eitt hús\nTvö rauð hús",  # one line too few
        "Hundur geltir\nKötturinn sefur\nallan daginn\n",  # one too many, no opening
        "",
    ]
    folder = save_answers(tmp_path / "a", card, texts, cut=[0])
    assert [doc.hypotheses for doc in documents(load_scored(folder))] == [
        ["Eitt hús", "Tvö rauð hús", ""],
        ["Hundur geltir", "Kötturinn sefur allan daginn"],
        [""],
    ]
    found, failures = scored_as(folder)
    lines = found["stripped_segment"]
    assert (lines["alignment_failures"], lines["opened"]) == (3, 1)
    assert failures == {"empty": 1, "fewer_lines": 1, "more_lines": 1}
    # the surplus line, joined, makes that segment right; the missing ones count as 0
    assert lines["chrf++_mean"].value == pytest.approx((100 + 100 + 0 + 100 + 100 + 0) / 6)


def test_an_opening_of_the_answers_own_shifts_no_line(card, tmp_path):
    texts = [
        "Sure!\nHere you are:\n\nEitt hús\r\nTvö rauð hús\nEndir sögunnar",
        "Translation:\nHundur geltir",  # too few lines with or without it: left alone
        "Svar:\n\nAftur rigning í\u2028dag",  # which is no line break here
    ]
    folder = save_answers(tmp_path / "a", card, texts)
    docs = documents(load_scored(folder))
    assert docs[0].hypotheses == docs[0].references
    assert docs[1].hypotheses == ["Translation:", "Hundur geltir"]
    assert all(doc.aligned for doc in docs)
    found, failures = scored_as(folder)
    lines = found["stripped_segment"]
    assert (lines["own_opening"], lines["opened"], failures) == (2, 0, {})
    raw, stripped = (found[unit]["chrf++"].value for unit in ("raw_document", "stripped_document"))
    assert raw < stripped  # the raw score keeps it


def test_a_source_with_other_lines_than_its_reference_is_one_segment(make_card, tmp_path):
    rows = [{"q": "One.\nTwo.", "r": "Eitt. Tvö."}, {"q": "x\ny", "r": "u\nv"}]
    make_card("uneven", train=rows, test=rows, metric="translation")
    folder = save_answers(tmp_path / "a", "uneven", ["Eitt.\n\nTvö.", "u\nv"])
    docs = documents(load_scored(folder))
    assert (docs[0].sources, docs[0].hypotheses) == (["One. Two."], ["Eitt. Tvö."])
    assert all(doc.aligned for doc in docs)
    assert scored_as(folder)[0]["stripped_segment"]["bleu"].value is not None


@pytest.mark.slow
def test_identical_and_shuffled_references(real_home, tmp_path):
    task = open_task(load_card("en_is_news"), "test")
    same, failures = scored_as(save_answers(tmp_path / "same", "en_is_news", task.responses))
    for unit in translation.UNITS:
        for name in ("chrf++", "bleu", "chrf++_mean", "bleu_mean"):
            score = same[unit][name]
            assert (score.value, score.low, score.high) == pytest.approx((100, 100, 100))
    assert (failures, same["stripped_segment"]["opened"]) == ({}, 65)

    shuffled = list(task.responses)
    random.Random(0).shuffle(shuffled)
    other, failures = scored_as(save_answers(tmp_path / "other", "en_is_news", shuffled))
    assert failures["fewer_lines"] + failures["more_lines"] > 40
    for unit in translation.UNITS:
        for name in translation.METRICS:
            score = other[unit][name]
            assert score.value < (60 if unit == "raw_document" else 45), (unit, name)
            assert score.low <= score.value <= score.high
    # the shared opening alone lifts the raw score of wrong documents
    assert other["raw_document"]["bleu"].value > other["stripped_document"]["bleu"].value


def test_giving_the_source_back_is_the_baseline(real_home, tmp_path):
    task = open_task(load_card("en_is_news"), "test")
    scores = scoring.score(save_answers(tmp_path / "a", "en_is_news", task.plain))
    assert scores.constant.text == "source copied"
    assert scores.first.measures == scores.constant.judged.measures
    chrf = scores.headline["chrF++"].value
    assert 10 < chrf < 30


def test_scores_equal_sacrebleus_command_line_and_sentence_scores(card, tmp_path):
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    unit = translation.UNITS[0]
    texts = [
        OPENING + "Eitt gult hús\nTvö rauð hús .",
        "Hundur geltir\nKötturinn sefur allan daginn\nBúið",
        "Aftur snjór í dag, 1,000 metrar!",
    ]
    folder = save_answers(tmp_path / "a", card, texts)
    pairs = translation.pairs(documents(load_scored(folder)), unit)
    for name, lines in (("hyp", pairs.hypotheses), ("ref", pairs.references)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    scores = scored_as(folder)[0][unit]
    for name, flags, single in (
        ("bleu", ["-m", "bleu"], BLEU(effective_order=True)),
        ("chrf++", ["-m", "chrf", "--chrf-word-order", "2"], CHRF(word_order=2)),
    ):
        command = [sys.executable, "-m", "sacrebleu", str(tmp_path / "ref")]
        command += ["-i", str(tmp_path / "hyp"), "-w", "10", "-f", "text", *flags]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        match = re.match(r"([^|]+)\|(\S+) = (\d+\.\d+)", printed)
        assert match is not None, printed
        assert scores[name].value == pytest.approx(float(match[3]), abs=1e-9)
        assert translation.signature(name, pairs) == f"{translation.SHOWN[name]}: {match[2]}"
        each = [
            single.sentence_score(said, [right]).score
            for said, right in zip(pairs.hypotheses, pairs.references, strict=True)
        ]
        assert scores[f"{name}_mean"].value == pytest.approx(np.mean(each))


@pytest.mark.parametrize(
    ("language", "lines", "tokenizer"),
    [
        ("Chinese", ["今天天气很好。", "我们去北京 IBM 公司。"], "zh"),
        ("Japanese", ["今日はいい天気です。", "東京タワー"], "char"),
        ("Icelandic", ["Aðeins eitt gult hús hér", "Hundurinn geltir allan daginn"], "13a"),
    ],
)
def test_perfect_answers_in_a_language_without_spaces_score_100(
    language, lines, tokenizer, make_card, tmp_path
):
    rows = [{"q": f"line {number}", "r": line} for number, line in enumerate(lines)]
    target = {"source": "English", "target": language}
    make_card("east", train=rows, test=rows, metric="translation", translation=target)
    assert translation.bleu_tokenizer(lines) == tokenizer
    right, _ = scored_as(save_answers(tmp_path / "right", "east", lines))
    assert right["stripped_segment"]["bleu"].value == pytest.approx(100)
    half = [line[: len(line) // 2] for line in lines]
    worse, _ = scored_as(save_answers(tmp_path / "half", "east", half))
    assert worse["stripped_segment"]["bleu"].value < 90
