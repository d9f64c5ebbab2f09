"""Rows that a card makes of published files: kept by value, written by templates."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.cli import main
from tell_plugins.core.cards import load_card
from tell_plugins.core.sources import blob_id, open_task
from tests.conftest import PROJECT, MakeCard, change

KINDS = ("spam", "news", "other")
CSV = "text,kind\n" + "".join(
    f'"message {n}, it\'s ""so""",{KINDS[n % 3].upper()}\n' for n in range(30)
)
MADE = {
    "query": "{{ text }}",
    "response": "{{ kind | lower }}",
    "keep": {"kind": ["SPAM", "NEWS"]},
}


@pytest.fixture
def published(tmp_path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "rows.csv").write_text(CSV)
    return folder


def source(folder: Path, name: str = "rows.csv", **more: Any) -> dict[str, Any]:
    url = f"https://far.example/{name}"
    return {"file": name, "url": url, "blob": blob_id(folder / name), **more}


def card_of(make_card: MakeCard, splits: dict[str, Any], **made: Any) -> None:
    folder = make_card("mail", train=[{"q": "a", "r": "b"}], metric="label")
    (folder / "train.jsonl").unlink()
    files = {
        name: {"file": f"{name}.jsonl", "made_of": made_of} for name, made_of in splits.items()
    }
    columns = {"query": "query", "response": "response"}
    change(folder, columns=columns, made=MADE | made, splits=files)


def rows_of(tmp_path: Path, split: str) -> list[dict[str, str]]:
    lines = (tmp_path / "data" / "mail" / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


Make = Callable[..., str]


@pytest.fixture
def make(published, tell) -> Make:
    """Make the card's rows of the published files; what is said."""
    return partial(tell, "data", "mail", "--from", published)


def test_rows_are_kept_by_value_written_by_templates_and_dealt_to_splits(
    make_card, published, tmp_path, make
):
    splits = {"train": [source(published, after=5)], "test": [source(published, first=5)]}
    card_of(make_card, splits)
    make()
    train, test = rows_of(tmp_path, "train"), rows_of(tmp_path, "test")
    wanted = {(f'message {n}, it\'s "so"', KINDS[n % 3]) for n in range(30) if n % 3 < 2}
    assert (len(train), len(test)) == (15, 5)
    assert {(row["query"], row["response"]) for row in train + test} == wanted
    assert len(open_task(load_card("mail"), "train")) == 15
    make()
    assert rows_of(tmp_path, "train") == train


def test_a_query_of_a_held_out_split_trains_nowhere(make_card, published, tmp_path, make):
    (published / "new.csv").write_text("text,kind\nMESSAGE 0,SPAM\nmessage 0,SPAM\nother,NEWS\n")
    (published / "held.csv").write_text("text,kind\nmessage  0.,SPAM\n")
    splits = {"train": [source(published, "new.csv")], "test": [source(published, "held.csv")]}
    card_of(make_card, splits)
    assert "train: 2 rows whose query stands before are left out" in make()
    assert [row["query"] for row in rows_of(tmp_path, "train")] == ["other"]


def test_nested_rows_and_json_answers(make_card, published, tmp_path, make):
    pieces = [{"text": "a table for "}, {"text": "két <5>", "slot": "size"}]
    (published / "nested.json").write_text(json.dumps({"Book": [{"data": pieces}]}))
    card_of(
        make_card,
        {"train": [source(published, "nested.json", add={"intent": "book"})]},
        query="{{ data | map(attribute='text') | join }}",
        response="{{ {'intent': intent, data[1].slot: data[1].text} | tojson }}",
        keep={},
    )
    make()
    row = rows_of(tmp_path, "train")[0]
    assert row["query"] == "a table for két <5>"
    assert row["response"] == '{"intent": "book", "size": "két <5>"}'


def test_a_changed_card_makes_its_rows_anew(make_card, published, tmp_path, make, tell):
    splits = {"train": [source(published)]}
    card_of(make_card, splits)
    make()
    card_of(make_card, splits, response="{{ kind }}")
    said = " ".join(tell("data", "list", "mail", code=1).split())
    assert "made by another version of the card" in said
    make()
    assert {row["response"] for row in rows_of(tmp_path, "train")} == {"SPAM", "NEWS"}


@pytest.mark.parametrize(
    ("made", "found"),
    [
        ({"query": "{{ body }}"}, "'made' does not fit this row: UndefinedError: 'body' is"),
        ({"query": "{{ text"}, "'made' does not fit this row: TemplateSyntaxError"),
        ({"response": "{{ '' }}"}, "a template gives no text"),
        ({"keep": {"sort": ["x"]}}, "'made' does not fit this row: KeyError: 'sort'"),
        ({"keep": {"kind": ["x"]}}, "0 rows were made"),
        ({"query": "{{ text.__class__.__mro__ }}"}, "is unsafe"),
        ({"query": "{{ text.format.__globals__ }}"}, "is unsafe"),
        ({"query": "{% include '/etc/passwd' %}"}, "no loader"),
    ],
)
def test_a_template_that_does_not_fit_is_one_message(
    make_card, published, tmp_path, make, made, found
):
    card_of(make_card, {"train": [source(published)]}, **made)
    assert found in make(code=2 if found == "0 rows were made" else 1)
    assert not (tmp_path / "data" / "mail" / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"made": None}, "which needs the templates"),
        ({"splits": {"train": {"file": "train.jsonl"}}}, "no split has made_of"),
        ({"splits": {"train": {"file": "a", "made_of": [{"fil": "x"}]}}}, "unknown key"),
        ({}, "not the right file"),
    ],
)
def test_a_card_that_does_not_say_all_and_another_file(make_card, published, make, keys, found):
    card_of(make_card, {"train": [source(published)]})
    change(published.parent / "cards" / "mail", **keys)
    if not keys:
        (published / "rows.csv").write_text(CSV + "more,SPAM\n")
    assert found in make(code=1)


SUITE = PROJECT.parent / "shared" / "data" / "suite"
SNIPS = ("intents", "restaurants", "weather", "music")


@pytest.mark.skipif(not SUITE.is_dir(), reason="no ../shared/data/suite")
@pytest.mark.parametrize("name", ["banking77", *(f"snips_{part}" for part in SNIPS)])
def test_the_published_tasks_are_made_as_their_cards_say(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TELL_DATA_HOME", str(tmp_path))
    assert main(["data", name, "--from", str(SUITE)]) == 0
    card = load_card(name)
    test = open_task(card, "validation" if name == "snips_weather" else "test")
    assert len(test) >= 150
    labels = card.answer.labels if card.answer and card.answer.labels else None
    if labels:
        assert set(open_task(card, "train").responses) == set(labels) == set(test.responses)
