"""Cards: every shipped one loads, every mistake in one is named with its key and remedy."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tell_plugins.core import paths, sources
from tell_plugins.core.anchors import resolve_anchor
from tell_plugins.core.cards import card_names, find_card, load_card
from tell_plugins.core.errors import UserError, UserErrors
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import blob_id, find_file, need_file, open_split
from tell_plugins.core.spec import Amount, parse_spec
from tests.conftest import message_of, write_rows

SHIPPED = sorted(path.parent.name for path in paths.CARDS.glob("*/card.yaml"))


def test_the_projects_own_cards_hold_their_default_mixtures():
    """Their rows are here, so the amount that a card names can be drawn."""
    for name in SHIPPED:
        card = load_card(name)
        if card.kind == "task" and (card.folder / card.split("train").file).is_file():
            assert len(build_mixture(parse_spec(f"tell/{name}"))) > 0


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_card(name):
    card = load_card(name)
    assert card.name == name == card.folder.name
    assert len(card.summary) <= 120
    for name, split in card.splits.items():
        here = (card.folder / split.file).is_file()
        if here:
            rows = open_split(card, name)
            assert (len(rows), rows.bad_count) == (split.rows, 0)
        ways = (split.url, split.modelscope, split.build, split.made_of)
        assert here or any(ways), "its rows can be had"
        assert split.rows or split.build, "what is built here has as many rows as it has"
        if split.url:
            assert split.blob, "a download is verified"
    if card.kind == "task":
        for source in card.general.sources:
            assert load_card(source).kind == "general"
        if not card.inline_anchor:
            assert resolve_anchor(card, "card", "").text
        if card.metric == "json":
            assert card.schema_path().is_file()
    assert not list(card.folder.glob("*.py")), "a card holds no code"


GOOD: dict[str, Any] = {
    "name": "x",
    "kind": "task",
    "summary": "s",
    "licence": "l",
    "source": "s",
    "columns": {"query": ["a", "b"], "response": "c"},
    "splits": {"train": {"file": "t.jsonl"}, "general": {"file": "g.jsonl"}},
    "anchor": "anchor.txt",
    "general": {"from": ["p"], "amount": "40x"},
    "metric": "json",
    "answer": {"schema": "s.json", "label": "y"},
    "translation": {"source": "A", "target": "B"},
}


def _write(tmp_path: Path, card: object, name: str = "x") -> Path:
    path = tmp_path / "cards" / name / "card.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(card if isinstance(card, str) else yaml.safe_dump(card), encoding="utf-8")
    return path


def _changed(**keys: Any) -> dict[str, Any]:
    """GOOD with keys replaced; a dotted key reaches inside, `...` removes a key."""
    card: dict[str, Any] = yaml.safe_load(yaml.safe_dump(GOOD))
    for dotted, value in keys.items():
        *way, last = dotted.split("__")
        place = card
        for step in way:
            place = place[step]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return card


def test_a_card_in_tell_cards(tmp_path):
    _write(tmp_path, GOOD)
    card = load_card("x")
    assert card.columns.query == ("a", "b")
    assert card.general.sources == ("p",)
    assert card.general.amount == Amount("x", 40)
    assert "x" in card_names()


@pytest.mark.parametrize(
    "name", ["held_out", "Held-Out", "holdout", "tests", "validation_set", "dev", "eval", "Test"]
)
def test_splits_that_would_train_unnoticed(name, tmp_path):
    splits = {"train": {"file": "t.jsonl"}, name: {"file": "h.jsonl"}}
    _write(tmp_path, _changed(splits=splits))
    with pytest.raises(UserError, match=f"split '{name}' would not be held out .* heldout"):
        load_card("x")


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("anchr", "anchor"),
        ("columns__qery", "query"),
        ("splits__train__fil", "file"),
        ("splits__train__columns", "response"),  # see below: a typo two levels down
        ("splits__general__hub_splt", "hub_split"),
        ("general__amont", "amount"),
        ("general__form", "from"),
        ("answer__shema", "schema"),
        ("translation__sorce", "source"),
    ],
)
def test_a_typo_at_any_level_names_the_nearest_key(tmp_path, typo, meant):
    value: Any = "v"
    if typo.endswith("columns"):
        value = {"query": "q", "response": "r", "reponse": "r"}
    _write(tmp_path, _changed(**{typo: value}))
    caught = message_of(load_card, "x")
    dotted = typo.replace("__", ".") + (".reponse" if typo.endswith("columns") else "")
    assert f"unknown key '{dotted}'" in caught
    assert f"did you mean '{meant}'?" in caught
    assert "x/card.yaml" in caught


def test_all_problems_of_a_card_are_raised_together(tmp_path):
    card = _changed(
        anchr="v", kind="tsk", licence=..., general__amount="40y", splits__train__file=7
    )
    _write(tmp_path, card)
    with pytest.raises(UserErrors) as caught:
        load_card("x")
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    assert "unknown key 'anchr'" in text
    assert "key 'kind' is 'tsk'" in text
    assert "'task' or 'general'" in text
    assert "key 'licence' is missing" in text
    assert "key 'general.amount': bad amount '40y'" in text
    assert "allowed: 0, all, 2000rows" in text
    assert "key 'splits.train.file' is 7" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": False}, "key 'name' is False"),  # an unquoted `no`
        ({"summary": "  "}, "key 'summary' is '  '"),
        ({"columns": "q"}, "key 'columns' is 'q'"),
        ({"columns__query": ["a", "c"]}, "column 'c' is query and response at once"),
        ({"columns__query": []}, "key 'columns.query' is []"),
        ({"columns__query": [1]}, "key 'columns.query.0' is 1"),
        ({"splits": {}}, "key 'splits' is {}"),
        ({"splits__train": "t.jsonl"}, "key 'splits.train' is 't.jsonl'"),
        ({"splits__train__rows": 0}, "key 'splits.train.rows' is 0"),
        ({"splits__train__blob": "abc"}, "key 'splits.train.blob' is 'abc'"),
        ({"general__from": []}, "key 'general.from' is []"),
        ({"general__from": ["a", "b", "a"]}, "key 'general.from' is ['a', 'b', 'a']: 'a' is named"),
        ({"general__amount": 40}, "say the unit: 40rows or 40tok"),
        ({"max_new_tokens": "many"}, "key 'max_new_tokens' is 'many'"),
        ({"splits": {"tain": {"file": "t.jsonl"}}}, "a task card needs a split 'train'"),
        ({"anchor": ...}, "anchor: a task card needs this"),
        ({"general": ...}, "general: a task card needs this"),
        ({"answer": ...}, "metric 'json' needs the answer's schema"),
        ({"metric": "translation", "translation": ..., "answer": ...}, "needs the two languages"),
        ({"metric": "label"}, "'schema' and 'label' are for metric 'json', not 'label'"),
        ({"answer__labels": ["a", "b"]}, "'labels' are for metric 'label', not 'json'"),
        ({"metric": "label", "answer": {"labels": ["a"]}}, "at least 2 items"),
        ({"metric": "label", "answer": {"labels": ["a", "b", "a "]}}, "'a' is named twice"),
        ({"metric": "label", "answer": {"labels": "a"}}, "key 'answer.labels' is 'a'"),
        ({"max_tokens": 5}, "only general data is cut by length"),
        ({"question": "("}, "no regular expression"),
        ({"question": "a"}, "exactly one group"),
        ({"kind": "general"}, "only a task card has this"),
        ({"name": "y"}, "name 'y' differs from the folder 'x'"),
    ],
)
def test_wrong_values(tmp_path, change, message):
    _write(tmp_path, _changed(**change))
    caught = message_of(load_card, "x")
    assert message in caught
    assert "x/card.yaml" in caught


def test_labels_are_read_as_they_are_written(tmp_path):
    """YAML would make a truth value of `no` and 1.0 of `1.00`: no answer would ever equal it."""
    card = yaml.safe_dump(_changed(metric="label", answer={"labels": "LABELS"}))
    _write(tmp_path, card.replace("LABELS", "[no, yes, True, 1.00, 'quoted']"))
    answer = load_card("x").answer
    assert answer.labels == ("no", "yes", "True", "1.00", "quoted")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "line 2: no YAML: did not find expected node content"),
        ("- a\n", "a card is a mapping"),
        ("", "a card is a mapping"),
        ("name: x\nkind: task\nname: x\n", r"line 3: key 'name' is given twice"),
        ("name: x\nsplits:\n  train: {file: a}\n  train: {file: b}\n", "line 4: key 'train'"),
        ("name: x\ndate: 2024-13-45\n", r"line 2: unknown key 'date'"),
        ("name: x\nsource: &all {again: *all}\n", "line 2: no YAML: more than 32 levels"),
        ("1: x\nyes: y\n", "unknown key|Keys should be strings"),
    ],
)
def test_files_that_are_no_card(tmp_path, text, message):
    _write(tmp_path, text)
    caught = message_of(load_card, "x")
    assert re.search(message, caught)
    assert "x/card.yaml" in caught


def test_a_card_is_read_again_when_it_changed(tmp_path):
    path = _write(tmp_path, GOOD)
    assert load_card("x").summary == "s"
    stamp = path.stat().st_mtime_ns
    path.write_text(yaml.safe_dump(_changed(summary="new")), encoding="utf-8")
    os.utime(path, ns=(stamp, stamp))  # within one tick of the clock
    assert load_card("x").summary == "new"


def test_two_cards_with_one_name(tmp_path, monkeypatch):
    _write(tmp_path, GOOD)
    _write(tmp_path / "more", GOOD)
    monkeypatch.setenv("TELL_CARDS", f"{tmp_path / 'cards'}:{tmp_path / 'more' / 'cards'}")
    assert "two cards are named 'x'" in message_of(find_card, "x")
    assert card_names().count("x") == 1
    _write(tmp_path, {**GOOD, "name": "gsm8k"}, name="gsm8k")  # a shipped card's name
    assert "two cards are named 'gsm8k'" in message_of(load_card, "gsm8k")


def test_a_folder_named_twice_is_one(tmp_path, monkeypatch):
    _write(tmp_path, GOOD)
    roots = [tmp_path / "cards", tmp_path / "cards" / ".." / "cards", paths.CARDS]
    monkeypatch.setenv("TELL_CARDS", ":".join(map(str, roots)))
    assert load_card("x").name == "x"
    assert load_card("gsm8k").folder == paths.CARDS / "gsm8k"
    assert paths.card_roots()[0] == paths.CARDS


def test_an_unknown_card_names_the_nearest(tmp_path):
    caught = message_of(load_card, "halu_cot_jsn")
    assert "unknown card 'halu_cot_jsn'" in caught
    assert "did you mean 'halu_cot_json'?" in caught
    assert str(tmp_path / "cards") in caught


def test_folders_are_meant_from_where_run_sh_was_called(tmp_path, monkeypatch):
    _write(tmp_path, GOOD)
    monkeypatch.setenv("TELL_CALLER_DIR", str(tmp_path))
    monkeypatch.setenv("TELL_CARDS", "cards")
    monkeypatch.setenv("TELL_DATA_HOME", "data:more")
    assert load_card("x").folder == tmp_path / "cards" / "x"
    assert paths.data_homes() == [tmp_path / "data", tmp_path / "more"]
    assert paths.user_path("new.txt") == tmp_path / "new.txt"  # an output that is still to come
    (tmp_path / "README.md").write_text("the caller's")
    assert paths.user_path("README.md") == tmp_path / "README.md"
    assert paths.user_path("requirements.txt") == Path("requirements.txt")  # only in the project
    monkeypatch.delenv("TELL_CALLER_DIR")
    assert paths.user_path("new.txt") == Path("new.txt")


def test_the_home_of_nobody(monkeypatch):
    assert "no home folder for '~no_such_user/x'" in message_of(paths.user_path, "~no_such_user/x")
    monkeypatch.setenv("TELL_CACHE", "~no_such_user/x")
    assert "remedy:  write the path out" in message_of(paths.cache_dir)


def test_where_a_file_is_looked_for(tmp_path, make_card):
    folder = make_card("t", train=[{"q": "1", "r": "2"}])
    card = load_card("t")
    home = tmp_path / "data"
    assert find_file(card, "train") == folder / "train.jsonl"
    (folder / "train.jsonl").rename(tmp_path / "kept.jsonl")
    assert find_file(card, "train") is None
    caught = message_of(need_file, card, "train")
    assert "./run.sh data t" in caught
    assert str(home) in caught
    for place in ("any_folder/train.jsonl", "T/train.jsonl", "t/old/train.jsonl"):  # of others
        (home / place).parent.mkdir(parents=True, exist_ok=True)
        (home / place).write_bytes((tmp_path / "kept.jsonl").read_bytes())
        assert find_file(card, "train") is None
    for place in ("train.jsonl", "t/train.jsonl"):  # each beats the last
        (home / place).parent.mkdir(parents=True, exist_ok=True)
        (home / place).write_bytes((tmp_path / "kept.jsonl").read_bytes())
        assert find_file(card, "train") == home / place


def test_cards_that_declare_the_very_same_file_share_it(tmp_path, make_card):
    rows = [{"q": "1", "r": "2"}]
    theirs = write_rows(tmp_path / "data" / "official" / "rows.jsonl", rows)
    split = {"file": "rows.jsonl", "blob": blob_id(theirs)}
    make_card("t", train=rows, splits={"train": {"file": "train.jsonl"}, "test": split})
    card = load_card("t")
    assert find_file(card, "test") == theirs
    write_rows(theirs, [{"q": "1", "r": "3"}])  # the name alone does not make it the file
    assert find_file(card, "test") is None


def test_a_folder_that_cannot_be_entered_is_passed_over(monkeypatch):
    with tempfile.TemporaryDirectory() as place:  # one that other users may enter
        home = Path(place)
        home.chmod(0o755)
        (home / "lost+found").mkdir(mode=0)
        monkeypatch.setenv("TELL_DATA_HOME", place)
        was = os.geteuid()
        if was == 0:  # to the superuser nothing is closed
            os.seteuid(65534)
        try:
            assert sources._with_content("train.jsonl", "0" * 40) is None
        finally:
            os.seteuid(was)
