"""Row files of every format, whole and broken: each record with its place, or one clear error."""

import bz2
import codecs
import gzip
import json
import lzma
from datetime import date
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tell_plugins.core.row_files import FORMATS, read_records
from tell_plugins.core.table_rows import Record, table_notes
from tests.conftest import message_of

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
def same_rows(request, tmp_path) -> Path:
    """ROWS in every format."""
    path = tmp_path / f"rows{request.param}"
    if request.param == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif request.param == ".xlsx":
        pd.DataFrame(ROWS).to_excel(path, index=False)
    else:
        text = {
            ".jsonl": _lines(ROWS),
            ".json": json.dumps(ROWS, ensure_ascii=False, indent=1),
            ".csv": CSV,
            ".tsv": CSV.replace("q,r", "q\tr").replace("one,1", "one\t1").replace('",þ', '"\tþ'),
        }[request.param]
        path.write_text(text, encoding="utf-8")
    return path


def test_every_format_gives_the_same_rows(same_rows):
    assert _values(same_rows) == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_byte_order_mark_and_crlf(tmp_path, suffix):
    text = {".jsonl": _lines(ROWS[:1]), ".json": json.dumps(ROWS[:1]), ".csv": "q,r\none,1\n"}
    content = codecs.BOM_UTF8 + text[suffix].replace("\n", "\r\n").encode()
    assert _values(_file(tmp_path, f"a{suffix}", content)) == ROWS[:1]


LATIN = '{"q": "x", "r": "y"},\n\n{"q": "café", "r": "y"}'
UTF16 = "UTF-8 | UTF-16"
REFUSED: list[tuple[str, str | bytes, str]] = [  # names, content, what is told
    (" ".join(f"a{suffix}" for suffix in FORMATS), b"", "the file is empty"),
    ("a.txt a a.jsonl.gz a.xls", b"x",
     "no known file format | allowed: .csv, .json, .jsonl, .parquet, .tsv, .xlsx"),
    *(("a.jsonl a.json a.csv a.tsv", _lines(ROWS).encode(f"utf-{kind}"), UTF16)
      for kind in ("16", "16-le", "16-be", "32")),
    ("a.jsonl", LATIN.replace(",\n", "\n").encode("latin-1"),
     "a.jsonl, line 3: not UTF-8: byte 0xe9 | iconv -f WINDOWS-1252"),
    ("a.json", f"[{LATIN}]".encode("latin-1"), "a.json, line 3: not UTF-8: byte 0xe9"),
    *(("a.csv", f"q,r\n{text},1\n{text * 3},2\n".encode(encoding),  # not taken for Windows-1252
       "a.csv, line 2: not UTF-8: byte | iconv -f WINDOWS-1252")
      for text, encoding in (("今天天气很好", "gb18030"), ("привет", "cp1251"),
                             ("założenie", "cp1250"), ("雨", "sjis"))),
    *(("a.jsonl a.csv", content, "UTF-8 | unpack a packed file first") for content in (
        gzip.compress(b"x"), lzma.compress(b"x"), bz2.compress(b"x"),
        b"PK\x03\x04\x14\x00\x00\x00", b"PAR1\x15\x04\x15\x20\x00",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\x00")),
    *(("a.json", content, told) for content, told in (
        ('[{"q": 1},\n{"q": 2},\n{"q": oops},\n{}]', "line 3: no JSON array: Expecting value"),
        ('[{"q": 1},\n{"q": 2}\n', "line 3: no JSON array: its end is missing"),
        ('[{"q": 1},\n{"q": "cut', "line 2: no JSON array: Unterminated string"),
        ('[{"q": 1}]\n[{"q": 2}]', "line 2: no JSON array: something follows its end"),
        ("[\n" + "[" * 100_000, "line 2: no JSON array: maximum recursion"),
        ("[1,\n" + "9" * 5000 + "]", "line 2: no JSON array: Exceeds the limit"),
        ('[{"q": 1, "q": 2}]', "line 1: no JSON array: key 'q' stands twice"))),
    ("a.csv", 'q,r\nx,y\n"open,y\n', "line 3: no table: unexpected end of data"),
    ("a.csv", 'q,r\n"a"b,y\n', "line 2: no table: ',' expected"),
    ("a.csv", "q,r,q\n1,2,3\n", "line 1: column 'q' stands twice"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "content", "told"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_file_of_rows_is_one_message(tmp_path, names, content, told):
    for name in names.split():
        caught = message_of(_values, _file(tmp_path, name, content))
        assert all(part in caught for part in [name, *told.split(" | ")]), caught


def test_json_lines_keep_the_place_of_every_row(tmp_path):
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
def test_json_that_python_refuses_is_one_bad_row(tmp_path, line):
    records = list(read_records(_file(tmp_path, "a.jsonl", f'{{"q": 1}}\n{line}\n{{"q": 2}}\n')))
    assert [record.value for record in records] == [{"q": 1}, None, {"q": 2}]
    assert str(records[1].problem).startswith("no JSON (")


def test_lines_of_a_json_array(tmp_path):
    content = '\n[\n {"q": 1,\n  "r": 2},\n {"q": 3}, {"q": 4},\n\n 5\n]\n'
    assert list(read_records(_file(tmp_path, "a.json", content))) == [
        Record(3, {"q": 1, "r": 2}),
        Record(5, {"q": 3}),
        Record(5, {"q": 4}),
        Record(7, 5),
    ]


def test_rows_of_a_table_and_their_lines(tmp_path):
    content = 'q,r\n\n"a\nb",1\nshort\nlong,2,3\n,\nlast,4'
    records = list(read_records(_file(tmp_path, "a.csv", content)))
    assert [record.line for record in records] == [3, 5, 6, 8]
    assert records[0].value == {"q": "a\nb", "r": "1"}
    assert records[1].problem == "1 fields, but the header has 2"
    assert records[2].problem == "3 fields, but the header has 2"
    assert records[3].value == {"q": "last", "r": "4"}


@pytest.mark.parametrize("damage", ["no parquet", "cut", "changed"])
def test_a_broken_parquet_file(tmp_path, damage):
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
    assert "no Parquet file" in message_of(_values, path)


def test_parquet_rows_are_counted_over_row_groups(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"q": str(number), "r": None} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    records = list(read_records(path))
    assert [record.line for record in records] == list(range(1, 3001))
    assert [record.value for record in records] == rows
    column = pa.array(["x"])
    pq.write_table(pa.Table.from_arrays([column, column], names=["q", "q"]), path)
    assert "column 'q' stands twice" in message_of(_values, path)


# ---------------------------------------------------------------- as people's programs write them


TWEETS = [('she said "no" to me', "0"), ('"quoted" tweet', "1"), ('5" of rain', "0")]


def _pandas(rows: list[tuple[str, str]], **how: Any) -> str:
    return str(pd.DataFrame(rows, columns=["q", "r"]).to_csv(index=False, **how))


def _plain(rows: list[tuple[str, str]]) -> str:
    return "q\tr\n" + "".join(f"{q}\t{r}\n" for q, r in rows)


TABLE_TEXTS: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "tweets": (".tsv", _plain(TWEETS), TWEETS),
    # ten rows became seven: a quote that opens here and closes three rows on
    "open quote": (".tsv", _plain([('"a', "0"), ("b", "1"), ('c"', "0")]),
                   [('"a', "0"), ("b", "1"), ('c"', "0")]),
    "one quoted tweet": (".tsv", _plain([('"Hello"', "0"), ("b", "1")]),
                         [('"Hello"', "0"), ("b", "1")]),
    "pandas tsv": (".tsv", _pandas(TWEETS, sep="\t"), TWEETS),
    "pandas tsv, all quoted": (".tsv", _pandas([("a", "b")], sep="\t", quoting=1), [("a", "b")]),
    "quoted tab": (".tsv", _pandas([("a\tb", "x"), ("c\nd", "y")], sep="\t"),
                   [("a\tb", "x"), ("c\nd", "y")]),
    "Excel's tab text": (".tsv", 'q\tr\r\n"Hi, you"\tyes\r\n"Oh, no"\tno\r\n',
                         [("Hi, you", "yes"), ("Oh, no", "no")]),
    "semicolons": (".csv", _pandas(TWEETS, sep=";"), TWEETS),
    "semicolons, commas in texts": (".csv", "q;r\na, b, c;1\nd, e;0\n",
                                    [("a, b, c", "1"), ("d, e", "0")]),
    "sep=;": (".csv", "sep=;\r\nq;r\r\na,b;1\r\n", [("a,b", "1")]),
    "tabs in a csv": (".csv", _plain(TWEETS), TWEETS),
    "commas in a tsv": (".tsv", _pandas(TWEETS), TWEETS),
    "blank rows and columns": (".csv", "\n,,,\nq,r,,\na,b,,\n,,,\nc,d\n,\n\n",
                               [("a", "b"), ("c", "d")]),
    "old Mac": (".csv", "q,r\ra,b\rc,d\r", [("a", "b"), ("c", "d")]),
    "spaces in the header": (".csv", "q, r\na,b\n", [("a", "b")]),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE_TEXTS)
def test_tables_as_programs_write_them(name, tmp_path):
    suffix, text, expected = TABLE_TEXTS[name]
    values = _values(_file(tmp_path, f"a{suffix}", text))
    assert values == [{"q": q, "r": r} for q, r in expected]


def test_a_tab_in_quotes_is_said(tmp_path):
    path = _file(tmp_path, "a.tsv", _pandas([("a\tb", "x"), ("c\nd", "y")], sep="\t"))
    [note] = table_notes(path)
    assert "2 rows of a.tsv hold line breaks or tabs inside quotes, the first at line 2" in note


def test_a_quote_that_swallows_rows_is_refused_where_a_row_is_broken(tmp_path):
    """One row with a tab too many does not prove that the file quotes its fields."""
    path = _file(tmp_path, "a.tsv", 'q\tr\n"a\t0\nb\t1\nc"\t0\nd\te\tf\n')
    records = list(read_records(path))
    assert [record.value for record in records[:3]] == [
        {"q": '"a', "r": "0"}, {"q": "b", "r": "1"}, {"q": 'c"', "r": "0"},
    ]  # fmt: skip
    assert records[3].problem == "3 fields, but the header has 2"


@pytest.mark.parametrize("text", ["café – 5 €, “naïve”", "Grüße, l’été", "¿Qué?"])
def test_windows_1252_is_read_and_said(tmp_path, text):
    path = _file(tmp_path, "a.csv", f"q;r\r\n{text};1\r\n".encode("cp1252"))
    assert _values(path) == [{"q": text, "r": "1"}]
    notes = table_notes(path)
    assert "separated by ';'" in notes[0]
    assert "read as WINDOWS-1252" in notes[1]


def test_a_table_without_a_header(tmp_path):
    path = _file(tmp_path, "a.csv", "a,b\nc,d\ne\n")
    records = list(read_records(path, header=False))
    assert [record.value for record in records[:2]] == [{"1": "a", "2": "b"}, {"1": "c", "2": "d"}]
    assert records[2].problem == "1 fields, but the first row has 2"


def test_an_excel_workbook(tmp_path):
    path = tmp_path / "a.xlsx"
    book = openpyxl.Workbook()
    for row in [
        ["q", "r", None], [], ["þ 😀\nnext", 1], [True, 0.5], [None, None], ["x", date(2024, 3, 3)],
    ]:  # fmt: skip
        book.active.append(row)
    book.create_sheet("more").append(["z"])
    book.save(path)
    records = list(read_records(path))
    assert [(record.line, record.value) for record in records[:2]] == [
        (3, {"q": "þ 😀\nnext", "r": "1"}),
        (4, {"q": "true", "r": "0.5"}),
    ]
    assert (records[2].line, type(records[2].value["r"]).__name__) == (6, "datetime")
    assert "first sheet is read, 'Sheet'" in table_notes(path)[0]
    path.write_bytes(path.read_bytes()[:600])
    assert "no Excel workbook" in message_of(_values, path)


COLUMNS = [(name, [row[name] for row in ROWS]) for name in ROWS[0]]
SHAPES: dict[str, tuple[str, str, list[int]]] = {
    "object": (".json", json.dumps({"version": 1, "data": ROWS}), [1, 1]),
    "object, indented": (".json", json.dumps({"data": ROWS}, indent=1), [3, 7]),
    "object in .jsonl": (".jsonl", json.dumps({"data": ROWS}), [1, 1]),
    "object over lines": (".json", '{"data": [\n{"q": 1},\n{"q": 2}], "n": 2}', [2, 3]),
    "jq": (".json", "\n".join(json.dumps(row, indent=2) for row in ROWS), [1, 5]),
    "jq in .jsonl": (".jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS), [1, 5]),
    "jq --slurp in .jsonl": (".jsonl", json.dumps(ROWS, indent=2), [2, 6]),
    "array in .jsonl": (".jsonl", json.dumps(ROWS), [1, 1]),
    "pandas": (".json", json.dumps({name: dict(enumerate(c)) for name, c in COLUMNS}), [1, 2]),
    "lists by column": (".jsonl", json.dumps(dict(COLUMNS)), [1, 2]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_json_in_every_shape(name, tmp_path):
    suffix, text, lines = SHAPES[name]
    records = list(read_records(_file(tmp_path, f"a{suffix}", text)))
    assert [record.line for record in records] == lines
    assert [record.value for record in records] in (ROWS, [{"q": 1}, {"q": 2}])


@pytest.mark.parametrize("key", ["messages", "options"])
def test_rows_with_a_list_inside_are_rows(key, tmp_path):
    row = {key: [{"role": "user"} if key == "messages" else {"a": 1}]}
    assert _values(_file(tmp_path, "a.jsonl", _lines([row] * 2))) == [row] * 2
    row = {"messages": [{"role": "user"}]}
    assert _values(_file(tmp_path, "a.json", json.dumps(row, indent=1))) == [row]


def test_a_key_twice_is_a_bad_row(tmp_path):
    content = '{"q": 1, "q": 2}\n{"q": {"a": 1, "b": 2, "a": 3}}\n{"q": 3}\n'
    first, second, third = read_records(_file(tmp_path, "a.jsonl", content))
    assert (first.problem, second.problem, third.problem) == (
        "no JSON (key 'q' stands twice)", "no JSON (key 'a' stands twice)", None,
    )  # fmt: skip


def test_python_dicts_get_a_hint(tmp_path):
    [record] = read_records(_file(tmp_path, "a.jsonl", "{'q': 'x', 'r': None}\n"))
    assert "a Python dict: write it with json.dumps" in str(record.problem)
