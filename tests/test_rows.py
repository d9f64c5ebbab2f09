"""Valid rows on disk: what counts as a row, how they are kept, and caches that break."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.core import paths, rows
from tell_plugins.core.cards import Columns
from tell_plugins.core.errors import UserError
from tell_plugins.core.manifest import manifest_of
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.rows import MAX_CHARS, Rows, extract, open_rows, question_of
from tell_plugins.core.spec import parse_spec
from tell_plugins.core.text import comparison_keys, normalise, row_id
from tests.conftest import error_of, message_of, started_together, write_rows

COLUMNS = Columns(query=("q",), response="r")
SEVERAL = Columns(query=("instruction", "input"), response="output")
SURROGATE = '{"q": "half \\ud83d", "r": "y"}\n'


def _open(tmp_path: Path, *values: object, columns: Columns = COLUMNS) -> Rows:
    return open_rows(write_rows(tmp_path / "rows.jsonl", values), columns)


def test_rows_come_back_as_they_were(tmp_path):
    pairs = [("q one", "r one"), ("zwei\n\n ü", "þ 😀"), ("x" * 70_000, "y"), ("q one", "r one")]
    opened = _open(tmp_path, *({"q": q, "r": r, "other": 1} for q, r in pairs))
    assert len(opened) == 4
    assert opened.all_texts() == pairs
    assert opened.texts([2, 0, 0]) == [pairs[2], pairs[0], pairs[0]]
    assert opened.texts([]) == []
    assert opened.lines.tolist() == [1, 2, 3, 4]
    assert [bytes(entry) for entry in opened.ids] == [row_id(q, r) for q, r in pairs]
    assert opened.keys.tolist() == comparison_keys([q for q, _ in pairs]).tolist()
    assert opened.bad == []
    assert opened.sha256 == hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1, 2], "not an object but list"),
        ("text", "not an object but str"),
        (None, "not an object but NoneType"),
        ({}, "no column 'q' (columns: none)"),
        ({"Q": "a", "r": "b"}, "no column 'q' (columns: Q, r)"),
        ({"q": "a"}, "no column 'r' (columns: q)"),
        ({"messages": [{"role": "user"}]}, "no column 'q' (columns: messages)"),
        ({"q": 5.5, "r": "b"}, "column 'q' is float, not text"),
        ({"q": "a", "r": None}, "column 'r' is NoneType, not text"),
        ({"q": "a", "r": {"x": 1}}, "column 'r' is dict, not text"),
        ({"q": " \n", "r": "b"}, "the query is empty"),
        ({"q": "a", "r": "\t"}, "the response is empty"),
        pytest.param({"q": "x" * 1_000_000, "r": "b"}, "'q' has 1,000,000 characters", id="1e6"),
        pytest.param({"q": "a", "r": "x" * (MAX_CHARS + 1)}, "'r' has 200,001", id="one more"),
        ({"q": "half \ud83d", "r": "b"}, "column 'q' holds half a character"),
    ],
)
def test_values_that_are_no_row(value, reason):
    found = extract(value, COLUMNS)
    assert isinstance(found, str)
    assert reason in found


def test_several_columns_make_one_query():
    def query(**value: object) -> object:
        found = extract({"output": "o", **value}, SEVERAL)
        return found[0] if isinstance(found, tuple) else found

    assert query(instruction="a", input="b") == "a\nb"
    assert {query(instruction="a", input=nothing) for nothing in ("", None, " \n")} == {"a"}
    assert query(instruction="", input=None) == "the query is empty"
    assert query(instruction="a") == "no column 'input' (columns: output, instruction)"


def test_malformed_rows_are_listed_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LISTED", 3)
    opened = _open(tmp_path, {"q": "a", "r": "b"}, *([5] * 10), {"q": "c", "r": "d"})
    assert len(opened) == 2
    assert opened.lines.tolist() == [1, 12]
    assert opened.bad_count == 10
    assert [bad.line for bad in opened.bad] == [2, 3, 4]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"prompt": "a", "r": "b"}\n' * 3, "no usable row in 3 rows; line 1: no column 'q'"),
        ("\n\n", "no usable row in 0 rows"),
        ('{"q": \n"a"\n}\n', "no usable row in 3 rows; line 1: no JSON"),
    ],
)
def test_a_file_of_another_shape(tmp_path, content, reason):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    caught = error_of(open_rows, path, COLUMNS)
    assert reason in str(caught)
    assert "columns q, r" in str(caught.remedy)


# --- task rows are never lost, general rows are counted -------------------------------------------

LONG = json.dumps({"q": "a", "r": "x" * 1_000_000}) + "\n"
BROKEN = [
    pytest.param('{"q": "a",\n', "line 2: no JSON", id="no JSON"),
    pytest.param('{"q": "a"}\n', "line 2: no column 'r'", id="no column"),
    pytest.param('{"q": "", "r": "b"}\n', "line 2: the query is empty", id="no query"),
    pytest.param('{"q": "a", "r": " "}\n', "line 2: the response is empty", id="no response"),
    pytest.param(LONG, "line 2: column 'r' has 1,000,000", id="long"),
    pytest.param(SURROGATE, "line 2: column 'q' holds half a character", id="surrogate"),
]
GOOD_LINE = '{"q": "good", "r": "row"}\n'


@pytest.mark.parametrize(("line", "reason"), BROKEN)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_malformed_task_row_is_an_error_that_names_file_and_line(make_card, line, reason, split):
    folder = make_card("t", train=[{"q": "1", "r": "2"}], test=[{"q": "3", "r": "4"}])
    make_card("plain", kind="general", train=[{"q": f"g{n}", "r": "x"} for n in range(9)])
    (folder / f"{split}.jsonl").write_text(GOOD_LINE + line)
    caught = error_of(build_mixture, parse_spec("tell/t"))
    assert f"1 task rows cannot be used: {reason}" in str(caught)
    assert f"t/{split}.jsonl" in str(caught.where)


@pytest.mark.parametrize(("line", "reason"), BROKEN)
def test_a_malformed_general_row_is_dropped_counted_and_listed(make_card, line, reason):
    make_card("t", train=[{"q": "1", "r": "2"}])
    folder = make_card("plain", kind="general", train=[{"q": "g", "r": "x"}])
    (folder / "train.jsonl").write_text(GOOD_LINE + line + GOOD_LINE.replace("good", "other"))
    mixture = build_mixture(parse_spec("tell/t:general=all"))
    assert len(mixture) == 3
    source = manifest_of(mixture)["sources"][1]
    assert source["rows"]["in_file"] == 3
    assert source["rows"]["dropped"] == {"malformed": 1}
    assert source["rows"]["used"] == 2
    listed = source["malformed_rows"]
    assert len(listed) == 1
    assert f"line {listed[0]['line']}: {listed[0]['reason']}".startswith(reason)


# --- comparison -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello,  World", "hello,\tworld\r\n"),
        ("\uff28\uff45\uff4c\uff4c\uff4f world\uff1f", "hello WORLD?"),  # full-width forms
        ("caf\u00e9", "cafe\u0301"),  # composed and decomposed
        ("q\u0323\u0307", "q\u0307\u0323"),  # marks in another order
        ("\u00de\u00d3R\u00d0UR", "\u00fe\u00f3r\u00f0ur"),
        ("STRASSE", "stra\u00dfe"),
        ("\u03a3\u0391\u03a3", "\u03c3\u03b1\u03c2"),  # a final sigma
        ("pass\u200bword", "password"),  # zero-width space, soft hyphen, joiner, byte order mark
        ("pass\u00adword", "password"),
        ("pass\u200dword\ufeff", "password"),
        ("\u200fabc\u202c", "abc"),  # marks of direction
        ("\u2764\ufe0f", "\u2764"),  # a heart, with and without its variation
        ("a\u00a0b\u2003c\u3000d", "a b c d"),
        ("a\x00b\x85c", "a b c"),
        ("10 \u2212 3", "10 - 3"),  # the minus sign; dashes
        ("1914\u20131918", "1914-1918"),
        ("\u201cI can\u2019t\u201d", '"I can\'t"'),
        ("It rains.", "It rains"),
        ("\u4e0b\u96e8\u4e86\u3002", "\u4e0b\u96e8\u4e86"),
        ("!!!", "!!!"),
    ],
)
def test_texts_that_are_one(one, other):
    assert normalise(one) == normalise(other)
    keys = comparison_keys([one, other])
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "texts",
    [
        ("10 + 3", "10 - 3", "10 * 3", "10 / 3", "10 3", "10 \u00d7 3", "10 \u00f7 3"),
        ("C", "C++", "C#", ".NET C", "-C"),
        ("4", "-4", "+4", "\u00b14", "4%", "4!", "(4)", "<4", ">4", "\u22654", "~4"),
        ("3.5", "35", "3,5", "3 5", "3:5", "3/5", ".35"),
        ("$5", "\u20ac5", "\u00a35", "5", "5\u00b0"),
        ("10\u00b2", "102", "10\u00b3", "10"),
        ("good \U0001f600", "good \U0001f621", "good"),
        (  # the flags of England and Scotland
            "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
            "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
        ),
        ("You are coming", "You are coming?", "You are coming!", "You are coming..."),
        ("a_b", "a-b", "a b", "ab", "a.b", "@ab", "#ab"),
        ("caf\u00e9", "cafe"),
        ("x = 1;", "x == 1;", "x != 1;"),
        ("!!!", "???", ".", "\u200b"),
        ("row 1", "row 2"),
    ],
)
def test_texts_that_differ_in_what_carries_meaning(texts):
    assert len(set(comparison_keys(texts).tolist())) == len(texts)


def test_row_ids_tell_where_the_query_ends():
    assert row_id("ab", "c") != row_id("a", "bc")
    assert row_id("", "abc") != row_id("abc", "")
    assert row_id("ab", "c") == row_id("ab", "c")
    # for good: draws hang on it
    assert row_id("ab", "c").hex() == "873e9ea3d2c2455815354be805b8cd08"


# --- the cache ------------------------------------------------------------------------------------


def _cached(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache" / "rows").glob("*.arrow")
    return file


def _forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the file was read again")

    monkeypatch.setattr(rows, "_convert", fail)


def test_a_file_is_read_once(tmp_path, monkeypatch):
    first = _open(tmp_path, {"q": "a", "r": "b"}, 5)
    _forbid_reading(monkeypatch)
    second = _open(tmp_path, {"q": "a", "r": "b"}, 5)
    assert second.all_texts() == first.all_texts()
    assert second.bad == first.bad
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes((tmp_path / "rows.jsonl").read_bytes())
    assert open_rows(moved, COLUMNS).file == moved  # named by content, not by place


def test_what_makes_a_file_new(tmp_path):
    value = {"q": "a", "r": "b", "s": "c"}
    _open(tmp_path, value)
    assert _open(tmp_path, value, columns=Columns(query=("s",), response="r")).all_texts() == [
        ("c", "b")
    ]
    assert _open(tmp_path, {**value, "q": "new"}).all_texts() == [("new", "b")]


def test_an_interrupted_reading_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rows, "row_ids", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _open(tmp_path, {"q": "a", "r": "b"})
    assert [path.suffix for path in (tmp_path / "cache" / "rows").iterdir()] == [".lock"]
    assert len(_open(tmp_path, {"q": "a", "r": "b"})) == 1


def test_what_a_killed_process_left_is_removed_a_day_on(tmp_path):
    folder = tmp_path / "cache" / "rows"
    old, young = (folder / f".{name}.x1y2{paths.TEMPORARY}" for name in ("old", "young"))
    mine = folder / ".hidden"  # a user's
    for left in (old, young, mine):
        left.mkdir(parents=True)
        (left / "unfinished").write_text("half")
    for left in (old, mine):
        os.utime(left, (1e9, 1e9))
    assert len(_open(tmp_path, {"q": "a", "r": "b"})) == 1
    assert not old.exists()
    assert young.is_dir(), "somebody may be at it"
    assert mine.is_dir()


REWRITTEN = [{"q": f"q{n}", "r": "r"} for n in range(40)]


@pytest.mark.parametrize("restored", [False, True])
def test_a_file_that_is_rewritten_while_it_is_read_is_refused(tmp_path, monkeypatch, restored):
    """No part of its rows lies under the hash of the whole."""
    path = write_rows(tmp_path / "rows.jsonl", REWRITTEN)
    os.utime(path, (1, 1))
    convert, whole = rows._convert, path.read_bytes()

    def rewritten(*arguments: Any) -> None:
        path.write_bytes(whole[:100])
        convert(*arguments)
        path.write_bytes(whole if restored else whole[:90])

    monkeypatch.setattr(rows, "_convert", rewritten)
    assert "changes while it is read" in message_of(open_rows, path, COLUMNS)
    monkeypatch.undo()
    path.write_bytes(whole)
    assert len(open_rows(path, COLUMNS)) == 40


BUILD = """
import sys
from pathlib import Path
from tell_plugins.core import rows
from tell_plugins.core.cards import Columns

converted = []
convert = rows._convert
rows._convert = lambda *args: (converted.append(1), convert(*args))
print("ready", flush=True)
sys.stdin.readline()
opened = rows.open_rows(Path(sys.argv[1]), Columns(query=("q",), response="r"))
print(len(opened), len(converted), opened.ids.tobytes()[:8].hex())
"""


def test_several_processes_at_once_build_one_cache(tmp_path):
    path = write_rows(
        tmp_path / "rows.jsonl", ({"q": f"q{n}", "r": "r" * (n % 200)} for n in range(1, 8000))
    )
    answers = started_together(BUILD, *[[path]] * 3)
    assert {answer[0] for answer in answers} == {str(7999 - 39)}  # 39 responses are empty
    assert sorted(answer[1] for answer in answers) == ["0", "0", "1"]
    assert len({answer[2] for answer in answers}) == 1
    assert _cached(tmp_path).is_file()


def test_the_part_of_a_query_that_is_compared():
    patterns = {
        None: "a b",
        "(a\\s.)": "a b",
        "(b)": "b",
        "(b?)a": "",
        "(c)": "a b",
        "a|(c)": "a b",
    }
    assert {pattern: question_of("a b", pattern) for pattern in patterns} == patterns


# --- files in one piece ---------------------------------------------------------------------------


def _write_half(context: Any, name: str = "") -> None:
    """Begin to write inside `context`, then fail."""
    with context as temporary:
        (temporary / name if name else temporary).write_text("half")
        raise RuntimeError("interrupted")


def test_a_file_is_written_in_one_piece(tmp_path):
    target = tmp_path / "new" / "file.txt"
    paths.write_text(target, "þorn")
    with pytest.raises(RuntimeError):
        _write_half(paths.atomic_path(target))
    assert target.read_text(encoding="utf-8") == "þorn"
    assert list(target.parent.iterdir()) == [target]
    plain = tmp_path / "plain"
    plain.touch()
    assert target.stat().st_mode == plain.stat().st_mode  # readable as any other file


def test_a_folder_is_written_in_one_piece(tmp_path):
    here = tmp_path / "here"
    target = here / "folder"
    with pytest.raises(RuntimeError):
        _write_half(paths.atomic_dir(target), "a")
    assert list(here.iterdir()) == []
    with paths.atomic_dir(target) as temporary:
        (temporary / "a").write_text("first")
        with paths.atomic_dir(target) as other:  # somebody else is faster
            (other / "a").write_text("other")
    assert (target / "a").read_text() == "other"
    assert list(here.iterdir()) == [target]


@pytest.mark.parametrize("place", ["", "below/it"])
@pytest.mark.parametrize("context", [paths.atomic_path, paths.atomic_dir])
def test_a_file_in_the_way_of_a_folder(tmp_path, context, place):
    (tmp_path / "file").touch()
    target = tmp_path / "file" / place / "target"
    assert f"'{target.parent}': a file is in the way" in message_of(_write_half, context(target))
    with pytest.raises(UserError, match="--out: cannot write into the folder"):
        paths.make_folder(target.parent, "--out")
