"""General rows that are, or nearly are, held-out queries."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tell_plugins.core.cards import Columns, load_card
from tell_plugins.core.rows import Rows, open_rows, question_of
from tell_plugins.core.sources import open_split, open_task
from tell_plugins.preparation.overlap import EQUAL, NEAR, Match, matches_of
from tests.conftest import write_rows

QUERIES = [
    "Name three rivers of South America and the countries they flow through.",
    "How do I bake bread?",
    "Write a short poem about the first snow of the year in Reykjavik.",
    "???",
]


def general(tmp_path: Path, queries: list[str]) -> Rows:
    rows = [{"q": query, "r": f"answer {number}"} for number, query in enumerate(queries)]
    path = write_rows(tmp_path / "general.jsonl", rows)
    return open_rows(path, Columns(query=("q",), response="r"))


@pytest.mark.parametrize(
    ("query", "kind", "held_out"),
    [
        (QUERIES[0], EQUAL, 0),
        (QUERIES[0].lower().rstrip("."), EQUAL, 0),
        ("  HOW do I bake\nbread? ", EQUAL, 1),
        ("how do I bake bread", NEAR, 1),
        ("Name four rivers of South America and the countries they flow through.", NEAR, 0),
        ("Name three long rivers of South America and countries they flow through.", NEAR, 0),
        ("How do I bake a cake with three layers?", None, None),
        ("???", EQUAL, 3),  # no words: compared as it stands
        ("!!!", None, None),
    ],
)
def test_kinds(tmp_path, query, kind, held_out):
    assert matches_of(general(tmp_path, [query]), []) == []
    matches = matches_of(general(tmp_path, ["unrelated text", query]), QUERIES)
    if kind is None or held_out is None:
        assert matches == []
    else:
        [match] = matches
        assert match == Match(kind, 1, held_out, match.similarity)
        assert match.similarity == 100 or kind == NEAR


def halueval_queries(real_data: Path) -> list[str]:
    lines = (real_data / "halueval" / "general_data.json").open(encoding="utf-8")
    return [json.loads(line)["user_query"] for line in lines][3001:]


def changed(text: str, words: int, chance: random.Random, vocabulary: list[str]) -> str:
    parts = text.split()
    for _ in range(words):
        place = chance.randrange(len(parts))
        how = chance.choice(("out", "in", "replaced"))
        if how == "out" and len(parts) > 1:
            del parts[place]
        elif how == "in":
            parts.insert(place, chance.choice(vocabulary))
        else:
            parts[place] = chance.choice(vocabulary)
    return " ".join(parts)


@pytest.mark.parametrize(("words", "least"), [(1, 0.99), (3, 0.78)])
def test_a_few_changed_words_are_found(real_data, tmp_path, words, least):
    queries = halueval_queries(real_data)
    chance = random.Random(words)
    vocabulary = [word for query in queries for word in query.split()]
    long = [query for query in queries if len(query.split()) >= 6]
    rows = general(tmp_path, [changed(query, words, chance, vocabulary) for query in long])
    assert len(matches_of(rows, queries)) >= least * len(rows)


def test_alpaca_rows_that_are_halueval_test_queries(real_home):
    """28 of 999 rows, the same rows that the core drops from the mixture."""
    halu = load_card("halu_cot_json")
    test = open_task(halu, "test")
    queries = [question_of(text, halu.question) for text in test.plain]
    rows = open_split(load_card("alpaca_en_demo"), "train")
    matches = matches_of(rows, queries)
    equal = [match.row for match in matches if match.kind == EQUAL]
    assert len(equal) == 28
    assert 1 <= len(matches) - len(equal) <= 10
    assert equal == np.flatnonzero(np.isin(rows.keys, test.question_keys)).tolist()


@pytest.fixture
def cards(make_card) -> None:
    make_card(
        "plain",
        kind="general",
        train=[
            {"q": "HOW do I  bake bread?", "r": "With flour."},
            {"q": QUERIES[0].replace("three", "four").rstrip("."), "r": "x"},
            {"q": "Something else altogether", "r": "y"},
        ],
    )
    make_card(
        "rivers",
        train=[{"q": "Name a lake.", "r": "1"}, {"q": "Name a sea.", "r": "2"}],
        test=[{"q": query, "r": "0"} for query in QUERIES[:3]],
    )


@pytest.mark.parametrize("what", ["rivers", "tell/rivers:task=1rows"])
def test_report(cards, tmp_path, what, tell):
    out_file = tmp_path / "found.jsonl"
    out = tell("data", "overlap", what, "--out", str(out_file))
    assert "rivers: held-out queries of test (3 rows)" in out
    assert "plain: 3 rows" in out
    assert "1  33.333%  are a held-out query but for case" in out
    assert "1  33.333%  are nearly one (similarity 80" in out
    assert "HOW do I bake bread?   (line 1)" in out
    assert "(test, line 2)" in out
    found = [json.loads(line) for line in out_file.open()]
    assert [(row["kind"], row["line"], row["held_out"]) for row in found] == [
        ("equal", 1, "test, line 2"),
        ("nearly equal", 2, "test, line 1"),
    ]
    rows = open_split(load_card("plain"), "train")
    assert found[1]["id"] == rows.ids[1].tobytes().hex()
    recipe = tmp_path / "small.yaml"
    recipe.write_text("model: x\ndataset: [tell/rivers:task=1rows/general=1rows]\n")
    out = tell("data", "overlap", str(recipe), "--similarity", "100")
    assert "0   0.000%  are nearly one" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plain"], "'plain' is general data"),
        (["river"], "did you mean 'rivers'?"),
        (["rivers", "--general", "plane"], "did you mean 'plain'?"),
        (["rivers", "--general", "plain+plain"], "'plain' is named twice"),
        (["rivers", "--similarity", "20"], "allowed: 50 and more"),
        (["rivers", "--split", "validation"], "unknown split 'validation'"),
        (["no_such.yaml"], "no recipe 'no_such.yaml'"),
    ],
)
def test_wrong_words(cards, words, message, tell):
    assert message in tell("data", "overlap", *words, code=1)
