"""Anchor prompts: from a file, inline, another one, none; on made rows and on the official ones."""

from pathlib import Path

import pytest

from tell_plugins.core.anchors import (
    anchor_files,
    in_front,
    shared_front,
)
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.sources import TaskRows, inline_front, open_task
from tests.conftest import MakeCard, change, error_of

ROWS = [{"q": f"query {n}", "r": f"response {n}"} for n in range(4)]
INLINE = "Translate this.\nAnswer with the translation alone:\n\n"


def _make_inline(make_card: MakeCard, train: list[str], test: list[str] | None = None) -> Path:
    """A card whose `card.yaml` says `anchor: inline`."""
    rows, held = ([{"q": query, "r": "r"} for query in part or []] for part in (train, test))
    folder = make_card("t", train=rows, test=held or None)
    change(folder, anchor="inline")
    (folder / "anchor.txt").unlink()
    return folder


def _open(anchor: str = "card", split: str = "train") -> TaskRows:
    return open_task(load_card("t"), split, anchor)


def test_the_cards_anchor_stands_before_every_query(make_card):
    folder = make_card("t", train=ROWS)
    (folder / "anchor.txt").write_text("\ufeff\n Do the task. \n\n", encoding="utf-8")
    task = _open()
    assert task.anchor.text == "Do the task."
    assert task.queries == [f"Do the task.\n\nquery {n}" for n in range(4)]
    assert task.plain == [row["q"] for row in ROWS]
    assert task.anchor.name == "card"


def test_another_anchor_of_the_card(make_card):
    folder = make_card("t", train=ROWS)
    (folder / "short.txt").write_text("Go!")
    assert anchor_files(load_card("t")) == ["anchor", "short"]
    assert _open("short").queries[0] == "Go!\n\nquery 0"
    assert _open("anchor").queries == _open("card").queries
    assert _open("short").anchor.sha256 != _open("card").anchor.sha256
    error = error_of(_open, "shrt")
    assert "did you mean 'short'" in str(error)
    assert error.allowed == "anchor, card, none, short"


def test_an_anchor_does_not_change_which_row_it_is(make_card):
    make_card("t", train=ROWS)
    card, none = _open("card"), _open("none")
    assert card.ids.tolist() == none.ids.tolist()
    assert card.seen_ids.tolist() != none.seen_ids.tolist()
    assert none.seen_ids.tolist() == none.ids.tolist()


@pytest.mark.parametrize(
    ("content", "message"), [(b" \n", "the anchor is empty"), ("für".encode("latin-1"), "UTF-8")]
)
def test_an_anchor_file_that_is_none(make_card, content, message):
    folder = make_card("t", train=ROWS)
    (folder / "anchor.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        _open()
    assert str(caught.value.where).endswith("t/anchor.txt")


def test_an_inline_anchor_stays_where_it_is_or_is_exchanged(make_card):
    """It is learnt from the training rows; spaces that some have after it do not stay."""
    rows = [INLINE + "  one", INLINE + "two"]
    folder = _make_inline(make_card, rows, [INLINE + "only one test row"])
    (folder / "own.txt").write_text("Own words.")
    task = _open()
    assert (task.queries, task.plain, task.anchor.text) == (rows, ["one", "two"], INLINE)
    assert _open("none").queries == _open("none").plain == ["one", "two"]
    assert _open("own").queries == ["Own words.\n\none", "Own words.\n\ntwo"]
    assert _open("own").ids.tolist() == task.ids.tolist()
    assert _open(split="test").plain == _open("none", "test").queries == ["only one test row"]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["only one"], None, "cannot be told from one row"),
        (["one", "two"], None, "share no text at the front"),
        ([" one", " two"], None, "share no text at the front"),
        ([INLINE + "one", INLINE + "two"], ["something else"], "1 rows lack the inline anchor"),
        ([INLINE + "one", INLINE + "two", INLINE], None, "nothing but the inline anchor"),
    ],
)
def test_rows_whose_anchor_is_not_inline(make_card, train, test, message):
    _make_inline(make_card, train, test)
    with pytest.raises(UserError, match=message) as caught:
        _open(split="test" if test else "train")
    assert "t/" in str(caught.value.where)


@pytest.mark.parametrize(
    ("queries", "front"),
    [
        (["A\nb one", "A\nb two"], "A\n"),  # "b " is shared by chance
        (["Do it: one", "Do it: two"], "Do it: "),
        (["A\n\n  one", "A\n\n  two"], "A\n\n  "),  # spaces before a query are the anchor's
        (["A\nsame\nend", "A\nsame\nend"], "A\nsame\n"),
        (["A þ\nx", "A þ\ny", "A þ\nxy"], "A þ\n"),
    ],
)
def test_the_front_that_rows_share(queries, front):
    assert shared_front(queries, "here") == front


def test_an_anchor_in_front_of_a_foreign_query():
    assert in_front("") == ""
    assert in_front("Text.") == "Text.\n\n"
    assert in_front("Text.\n") == "Text.\n"


@pytest.mark.usefixtures("real_home")
@pytest.mark.parametrize(
    ("name", "split", "rows"),
    [("en_is_news", "train", 71), ("en_is_news", "test", 65), ("halu_cot_json", "test", 1506)],
)
def test_official_rows(name, split, rows):
    card = load_card(name)
    with_anchor, without = open_task(card, split), open_task(card, split, "none")
    front = with_anchor.anchor.text
    assert len(with_anchor) == rows == card.splits[split].rows
    assert with_anchor.queries == [front + plain for plain in without.queries]
    assert without.queries == without.plain == with_anchor.plain
    assert front == inline_front(card) == in_front(front)
    assert ("thought" if name == "halu_cot_json" else "Icelandic") in front
