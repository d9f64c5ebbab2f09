"""Row files of every format, whole and broken: each record with its place, or one clear error."""

from __future__ import annotations

import codecs
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tell_plugins.core import rowfiles
from tell_plugins.core.errors import UserError
from tell_plugins.core.rowfiles import FORMATS, Record, read_records

ROWS = [{"q": "one", "r": "1"}, {"q": 'zwei, "quoted"\nnext line', "r": "þ 😀"}]


def _file(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _values(path: Path) -> list[Any]:
    return [record.value for record in read_records(path)]


def _lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


CSV = 'q,r\none,1\n"zwei, ""quoted""\nnext line",þ 😀\n'


@pytest.fixture(params=FORMATS)
def same_rows(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """ROWS in every format."""
    path = tmp_path / f"rows{request.param}"
    if request.param == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        text = {
            ".jsonl": _lines(ROWS),
            ".json": json.dumps(ROWS, ensure_ascii=False, indent=1),
            ".csv": CSV,
            ".tsv": CSV.replace("q,r", "q\tr").replace("one,1", "one\t1").replace('",þ', '"\tþ'),
        }[request.param]
        path.write_text(text, encoding="utf-8")
    return path


def test_every_format_gives_the_same_rows(same_rows: Path) -> None:
    assert _values(same_rows) == ROWS


def test_upper_case_endings(same_rows: Path) -> None:
    assert _values(same_rows.rename(same_rows.with_suffix(same_rows.suffix.upper()))) == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_byte_order_mark_and_crlf(tmp_path: Path, suffix: str) -> None:
    text = {".jsonl": _lines(ROWS[:1]), ".json": json.dumps(ROWS[:1]), ".csv": "q,r\none,1\n"}
    content = codecs.BOM_UTF8 + text[suffix].replace("\n", "\r\n").encode()
    assert _values(_file(tmp_path, f"a{suffix}", content)) == ROWS[:1]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_is_refused_with_the_command_that_helps(
    tmp_path: Path, suffix: str, encoding: str
) -> None:
    path = _file(tmp_path, f"a{suffix}", _lines(ROWS).encode(encoding))
    with pytest.raises(UserError, match="UTF-16 or UTF-32") as caught:
        _values(path)
    assert "iconv -f UTF-16" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"q": "x", "r": "y"}\n\n{"q": "café", "r": "y"}\n'),
        ("a.json", '[{"q": "x", "r": "y"},\n\n{"q": "café", "r": "y"}]'),
        ("a.csv", "q,r\nx,y\ncafé,y\n"),
        ("a.tsv", "q\tr\nx\ty\ncafé\ty\n"),
    ],
)
def test_latin_1_is_refused_with_its_line(tmp_path: Path, name: str, content: str) -> None:
    path = _file(tmp_path, name, content.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8: byte 0xe9") as caught:
        _values(path)
    assert str(caught.value.where).endswith(f"{name}, line 3")
    assert "iconv -f LATIN1" in str(caught.value.remedy)


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UserError, match="the file is empty"):
        _values(_file(tmp_path, f"a{suffix}", b""))


@pytest.mark.parametrize("name", ["a.txt", "a", "a.jsonl.gz", "a.xlsx"])
def test_other_formats_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no known file format") as caught:
        _values(_file(tmp_path, name, b"x"))
    assert caught.value.allowed == ".csv, .json, .jsonl, .parquet, .tsv"


def test_json_lines_keep_the_place_of_every_row(tmp_path: Path) -> None:
    content = '\n{"q": 1}\r\n   \n{"q": 2\n[3]\n"four"\n{"q": 5} {"q": 6}\nnull\n{"q": 7}'
    records = list(read_records(_file(tmp_path, "a.jsonl", content)))
    assert [record.line for record in records] == [2, 4, 5, 6, 7, 8, 9]
    good = [record.problem is None for record in records]
    assert good == [True, False, True, True, False, True, True]
    assert records[1].problem == "no JSON (Expecting ',' delimiter at column 8)"
    assert "Extra data" in str(records[4].problem)
    assert records[-1].value == {"q": 7}


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"q": ' + "9" * 5000 + "}", '{"q": "\x01"}', "nan", "{'q': 1}"]
)
def test_json_that_python_refuses_is_one_bad_row(tmp_path: Path, line: str) -> None:
    records = list(read_records(_file(tmp_path, "a.jsonl", f'{{"q": 1}}\n{line}\n{{"q": 2}}\n')))
    assert [record.value for record in records] == [{"q": 1}, None, {"q": 2}]
    assert str(records[1].problem).startswith("no JSON (")


def test_json_lines_under_a_json_name(tmp_path: Path) -> None:
    assert _values(_file(tmp_path, "a.json", _lines(ROWS))) == ROWS


def test_lines_of_a_json_array(tmp_path: Path) -> None:
    content = '\n[\n {"q": 1,\n  "r": 2},\n {"q": 3}, {"q": 4},\n\n 5\n]\n'
    assert list(read_records(_file(tmp_path, "a.json", content))) == [
        Record(3, {"q": 1, "r": 2}),
        Record(5, {"q": 3}),
        Record(5, {"q": 4}),
        Record(7, 5),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '[{"q": 1},\n{"q": 2},\n{"q": oops},\n{"q": 4}]',
            "line 3: no JSON array: Expecting value",
        ),
        ('[{"q": 1},\n{"q": 2}\n', "line 3: no JSON array: its end is missing"),
        ('[{"q": 1},\n{"q": "cut', "line 2: no JSON array: Unterminated string"),
        ('[{"q": 1}]\n[{"q": 2}]', "line 2: no JSON array: something follows its end"),
        ("[\n" + "[" * 100_000, "line 2: no JSON array: maximum recursion"),
        ("[1,\n" + "9" * 5000 + "]", "line 2: no JSON array: Exceeds the limit"),
    ],
)
def test_a_broken_json_array_is_an_error_with_its_line(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        _values(_file(tmp_path, "a.json", content))
    assert message in str(caught.value)
    assert "whole rows" in str(caught.value)


@pytest.mark.parametrize("content", ["[]", " [ ] \n", "[\n]"])
def test_an_empty_json_array_has_no_row(tmp_path: Path, content: str) -> None:
    assert _values(_file(tmp_path, "a.json", content)) == []


def test_a_json_array_read_in_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(3)
    rows = [
        {"q": 'x\n\\"]},' * rng.randint(0, 40), "n": rng.randint(0, 10**9), "l": [1.5, None]}
        for _ in range(40)
    ]
    path = _file(tmp_path, "a.json", json.dumps([*rows, 12345, "end"], indent=2))
    monkeypatch.setattr(rowfiles, "_CHUNK", 1 << 30)
    whole = list(read_records(path))
    assert [record.value for record in whole] == [*rows, 12345, "end"]
    for size in (1, 2, 3, 7, 64, 1000):
        monkeypatch.setattr(rowfiles, "_CHUNK", size)
        assert list(read_records(path)) == whole


def test_rows_of_a_table_and_their_lines(tmp_path: Path) -> None:
    content = 'q,r\n\n"a\nb",1\nshort\nlong,2,3\n,\nlast,4'
    records = list(read_records(_file(tmp_path, "a.csv", content)))
    assert [record.line for record in records] == [3, 5, 6, 7, 8]
    assert records[0].value == {"q": "a\nb", "r": "1"}
    assert records[1].problem == "1 fields, but the header has 2"
    assert records[2].problem == "3 fields, but the header has 2"
    assert records[3].value == {"q": "", "r": ""}
    assert records[4].value == {"q": "last", "r": "4"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('q,r\nx,y\n"open,y\n', "line 3: no table: unexpected end of data"),
        ('q,r\n"a"b,y\n', "line 2: no table: ',' expected"),
        ("q,r,q\n1,2,3\n", "line 1: column 'q' stands twice"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        _values(_file(tmp_path, "a.csv", content))
    assert message in str(caught.value)


def test_a_huge_field(tmp_path: Path) -> None:
    text = "x" * 1_000_000  # the csv module stops at 131,072 by itself
    assert _values(_file(tmp_path, "a.csv", f"q,r\n{text},1\n")) == [{"q": text, "r": "1"}]
    assert _values(_file(tmp_path, "a.jsonl", _lines([{"q": text}]))) == [{"q": text}]
    assert _values(_file(tmp_path, "a.json", json.dumps([{"q": text * 3}]))) == [{"q": text * 3}]


def test_a_header_alone_has_no_row(tmp_path: Path) -> None:
    assert _values(_file(tmp_path, "a.csv", "q,r\n")) == []


@pytest.mark.parametrize("damage", ["no parquet", "cut", "changed"])
def test_a_broken_parquet_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS * 500), path, compression="snappy")
    content = bytearray(path.read_bytes())
    if damage == "no parquet":
        content = bytearray(b"hello, I am a text file")
    elif damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[4:60] = bytes(56)
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="no Parquet file"):
        _values(path)


def test_parquet_rows_are_counted_over_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"q": str(number), "r": None} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    records = list(read_records(path))
    assert [record.line for record in records] == list(range(1, 3001))
    assert [record.value for record in records] == rows


def _damaged(good: bytes, rng: random.Random) -> bytes:
    """`good` with a few bytes changed, taken out or put in."""
    content = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(max(1, len(content)))
        new = rng.choice([b'"', b"\n", b"\\", b"[", b"}", b"\xff", b"\x00", good[:30]])
        if rng.random() < 0.5:
            content[place:place] = new
        else:
            content[place : place + rng.randint(1, 30)] = new[:1]
    return bytes(content)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
def test_any_damage_is_a_bad_row_or_one_clear_error(tmp_path: Path, suffix: str) -> None:
    rng = random.Random(11)
    good = {
        ".jsonl": _lines(ROWS * 3),
        ".json": json.dumps(ROWS * 3, indent=1),
        ".csv": CSV,
        ".tsv": CSV.replace(",", "\t"),
    }[suffix].encode()
    readable, errors = 0, []
    for _ in range(200):
        path = _file(tmp_path, f"a{suffix}", _damaged(good, rng))
        try:
            records = list(read_records(path))
        except UserError as error:
            errors.append(error)
            continue
        readable += 1
        assert all(record.value is None for record in records if record.problem)
        assert all(one.line <= other.line for one, other in pairwise(records))
    assert all(path.name in str(error) and error.remedy for error in errors)
    assert min(readable, len(errors)) > 5
