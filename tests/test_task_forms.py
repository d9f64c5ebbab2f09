"""Files as people's tools make them go through `new`, `check` and `mix`, or are refused rightly."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import open_task
from tell_plugins.core.spec import parse_spec
from tell_plugins.preparation.forms import parse_columns, parse_labels, read_rows
from tests.conftest import PROJECT, change, message_of, write_rows
from tests.own_task import ANCHOR, Row

ASK = "Say whether it rains."


class Kind(NamedTuple):
    """A kind of file: its name in the docs, how it is made, what `new` must make of it."""

    readme: str
    name: str
    write: Callable[[Path], object]
    flags: tuple[str, ...] = ()
    anchor: str | None = ANCHOR  # None: the rows bring it
    note: str = ""


TEXTS = [f'Message {n}: "{"rain" if n % 2 else "sun"}", again, 5" of it' for n in range(20)]
LABELS = ["yes" if n % 2 else "no" for n in range(20)]
FRAME = pd.DataFrame({"text": TEXTS, "label": LABELS})
NUMBERS = pd.DataFrame({"text": TEXTS, "label": [int(label == "yes") for label in LABELS]})
NAMED = ("--labels", "0=no,1=yes")


def _excel_csv(path: Path, frame: pd.DataFrame = FRAME, **how: Any) -> None:
    """As Excel on a Western European Windows saves a sheet with an empty column and row."""
    with path.open("w", encoding=how.pop("encoding", "cp1252"), newline="") as file:
        writer = csv.writer(file, dialect="excel", **how)
        writer.writerow([*frame.columns, ""])
        writer.writerows([*row, ""] for row in frame.itertuples(index=False))
        writer.writerow(["", "", ""])


def _hugging_face(path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_dict(NUMBERS.to_dict("list"), features=features)
    rows.to_parquet(str(path)) if path.suffix == ".parquet" else rows.to_json(str(path))


def _json_lines(make: Callable[[str, str], Row]) -> Callable[[Path], object]:
    rows = [make(text, label) for text, label in zip(TEXTS, LABELS, strict=True)]
    return lambda path: write_rows(path, rows)


def _messages(text: str, label: str, system: str = "", earlier: int = 0) -> Row:
    turns = [("user", "Hello?"), ("assistant", "Hi.")] * earlier
    turns = [("system", system)] * bool(system) + turns + [("user", text), ("assistant", label)]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _parts(text: str, label: str) -> Row:
    row = _messages(text, label)
    row["messages"][0]["content"] = [{"type": "text", "text": text}]
    return row


KINDS = [
    Kind("CSV", "excel.csv", _excel_csv),
    Kind("CSV", "german.csv", lambda path: _excel_csv(path, delimiter=";"),
         note="separated by ';'"),
    Kind("CSV", "bom.csv", lambda path: _excel_csv(path, encoding="utf-8-sig")),
    Kind("CSV", "pandas.csv", lambda path: FRAME.to_csv(path)),
    Kind("CSV", "cp1252.csv",
         lambda path: _excel_csv(path, FRAME.assign(text=[f"{t} für 5 €" for t in TEXTS])),
         note="read as WINDOWS-1252"),
    Kind("a table without header", "bare.csv",
         lambda path: FRAME.to_csv(path, header=False, index=False), ("--columns", "1,2")),
    Kind("TSV", "glue.tsv", lambda path: path.write_text(
        "sentence\tlabel\n" + "".join(f"{t}\t{n}\n" for t, n in NUMBERS.values)), NAMED),
    Kind("TSV", "pandas.tsv", lambda path: FRAME.to_csv(path, sep="\t", index=False)),
    Kind("Excel", "pandas.xlsx", lambda path: NUMBERS.to_excel(path, index=False), NAMED),
    Kind("Parquet", "datasets.parquet", _hugging_face, NAMED),
    Kind("JSON lines", "datasets.jsonl", _hugging_face, NAMED),
    Kind("JSON lines", "pandas.jsonl",
         lambda path: FRAME.to_json(path, orient="records", lines=True)),
    Kind("JSON", "pandas.json", lambda path: FRAME.to_json(path, orient="records", indent=2)),
    Kind("JSON", "jq.json", lambda path: path.write_text(
        "\n".join(json.dumps(row, indent=2) for row in FRAME.to_dict("records")))),
    Kind("JSON", "object.json", lambda path: path.write_text(
        json.dumps({"version": "1.0", "data": FRAME.to_dict("records")}, indent=1))),
    Kind("Alpaca", "alpaca.jsonl",
         _json_lines(lambda q, r: {"instruction": q, "input": "", "output": r})),
    Kind("Alpaca", "one_instruction.jsonl",
         _json_lines(lambda q, r: {"instruction": ASK, "input": q, "output": r}), anchor=None,
         note=f"all rows begin with the same text: the anchor, '{ASK}'"),
    Kind("Dolly", "dolly.jsonl",
         _json_lines(lambda q, r: {"instruction": "雨か？", "context": q, "response": r}),
         anchor=None, note="the anchor, '雨か？'"),
    Kind("messages", "messages.jsonl", _json_lines(_messages)),
    Kind("messages", "parts.jsonl", _json_lines(_parts)),
    Kind("messages", "system.jsonl", _json_lines(lambda q, r: _messages(q, r, ASK)), anchor=None,
         note="the rows' system prompt is the anchor"),
    Kind("messages", "last.jsonl", _json_lines(lambda q, r: _messages(q, r, earlier=2)),
         ("--last-turn",)),
    Kind("ShareGPT", "sharegpt.jsonl", _json_lines(lambda q, r: {
        "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": r}]})),
    Kind("query/response", "swift.jsonl",
         _json_lines(lambda q, r: {"query": q, "response": r, "history": [], "system": ""})),
    Kind("prompt/completion", "trl.jsonl",
         _json_lines(lambda q, r: {"prompt": q, "completion": r})),
    Kind("preferences", "trl.jsonl",
         _json_lines(lambda q, r: {"prompt": q, "chosen": r, "rejected": "no idea"}),
         note="'rejected' is not read: the chosen answers alone are trained"),
    Kind("preferences", "turns.jsonl", _json_lines(lambda q, r: {
        "chosen": _messages(q, r)["messages"], "rejected": _messages(q, "no idea")["messages"]}),
         note="'rejected' is not read"),
    Kind("preferences", "swift.jsonl",
         _json_lines(lambda q, r: {**_messages(q, r), "rejected_response": "no idea"}),
         note="'rejected_response' is not read"),
    Kind("your own columns", "own.csv",
         lambda path: FRAME.rename(columns={"text": "body", "label": "rain"}).to_csv(path),
         ("--columns", "query=body,response=rain")),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_tools_write_goes_through_new_check_and_mix(kind, own, tell):
    path = own.folder / kind.name
    kind.write(path)
    assert kind.note in own.new(str(path), *kind.flags, anchor=kind.anchor)
    recipe = own.recipe().path
    if kind.name in ("excel.csv", "parts.jsonl", "own.csv"):
        tell("check", recipe)
    tell("mix", recipe, "--out", own.folder / "mix")
    rows = [open_task(load_card("own"), split) for split in ("train", "test")]
    pairs = sorted((q, r) for part in rows for q, r in zip(part.plain, part.responses, strict=True))
    ending = " für 5 €" if kind.name == "cp1252.csv" else ""
    assert pairs == sorted((t + ending, r) for t, r in zip(TEXTS, LABELS, strict=True))
    front = kind.anchor or rows[0].anchor.text
    mixed = [json.loads(line) for line in (own.folder / "mix" / "train.jsonl").open()]
    asked = [row["messages"][0]["content"] for row in mixed if row["channel"] == "task"]
    assert asked
    gap = "" if front[-1].isspace() else "\n\n"
    assert all(text.startswith(f"{front}{gap}Message ") for text in asked)


def test_the_page_names_the_kinds_of_files_that_work():
    text = (PROJECT / "docs" / "own-task.md").read_text(encoding="utf-8")
    section = text.partition("## Files that work")[2].partition("\n## ")[0]
    table = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")]
    named = {kind.strip() for cell in table[1:] for kind in cell.replace("**", "").split(", ")}
    assert named == {kind.readme for kind in KINDS} | {"conversations"}


def conversations(system: str = "") -> list[Row]:
    return [_messages(q, r, system, earlier=n % 3) for n, (q, r) in
            enumerate(zip(TEXTS, LABELS, strict=True))]  # fmt: skip


FORMS_OF_TURNS: dict[str, Callable[[Row], Row]] = {
    "messages": lambda row: row,
    "sharegpt": lambda row: {
        "conversations": [
            {"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]}
            for m in row["messages"]
        ]
    },
    "query": lambda row: {
        "query": row["messages"][-2]["content"],
        "response": row["messages"][-1]["content"],
        "history": [["Hello?", "Hi."]] * (len(row["messages"]) // 2 - 1),
    },
    "trl": lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
}


@pytest.mark.parametrize("form", FORMS_OF_TURNS)
def test_all_turns_are_kept_and_the_last_answer_is_trained(form, own):
    rows = conversations()
    own.new(own.table([FORMS_OF_TURNS[form](row) for row in rows]))
    mixture = build_mixture(parse_spec("tell/own"))
    seen = [row["messages"] for row in mixture.rows() if row["channel"] == "task"]
    test = open_task(load_card("own"), "test")
    assert len(seen) + len(test) == len(rows)
    bare = []
    for messages in seen:
        front, _, first = messages[0]["content"].partition("\n\n")
        assert front == ANCHOR
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert [m["loss"] for m in messages if "loss" in m] == [0.0] * (len(messages) // 2 - 1)
        assert "loss" not in messages[-1]
        bare.append([first, *(m["content"] for m in messages[1:])])
    everything = [[m["content"] for m in row["messages"]] for row in rows]
    assert all(turns in everything for turns in bare)
    assert any(len(turns) == 6 for turns in bare)
    general = [row["messages"] for row in mixture.rows() if row["channel"] != "task"]
    assert all("loss" not in m for messages in general for m in messages)


def test_rows_of_one_turn_keep_their_ids_and_their_form(own):
    """A file that declares a history and one that does not are the same rows where it is empty."""
    own.new(own.table([_messages(*pair) for pair in zip(TEXTS, LABELS, strict=True)]))
    assert load_card("own").columns.history is None
    plain = build_mixture(parse_spec("tell/own"))
    keys = {key for row in plain.rows() for turn in row["messages"] for key in turn}
    assert keys == {"role", "content"}
    change(own.card, columns={"query": "query", "response": "response", "history": "history"})
    again = build_mixture(parse_spec("tell/own"))
    assert again.hash == plain.hash
    assert list(again.rows()) == list(plain.rows())


def test_a_broken_history_in_a_card_is_an_error(own):
    own.new(own.table(conversations()))
    file = own.card / "train.jsonl"
    rows = [json.loads(line) for line in file.open()]
    for n, history in enumerate([[["x"]], "x", [["x", None]], [["x", " "]]]):
        rows[n]["history"] = history
    write_rows(file, rows)
    caught = message_of(build_mixture, parse_spec("tell/own"))
    assert "line 1: the history is no list of [question, answer]" in caught
    assert "line 2: the history is no list of" in caught
    assert "line 4: an earlier turn is empty" in caught


def test_a_system_prompt_may_stay_one(own):
    own.new(own.table(conversations(ASK)), "--system", "keep")
    assert own.recipe().values["system"] == ASK
    assert load_card("own").file("anchor.txt").read_text() == ANCHOR + "\n"


@pytest.mark.parametrize(
    ("systems", "flags", "problem"),
    [
        (
            (ASK, "Be kind."),
            (),
            f"lines 2, 4, 6, 8, 10, 12, 14, 16, 18, 20: has not the system prompt '{ASK}'",
        ),
        ((ASK, ""), (), f"has not the system prompt '{ASK}'"),
        ((ASK, ASK), ("--anchor", ANCHOR), "an anchor is given, and the rows have a system prompt"),
    ],
)
def test_system_prompts_that_cannot_be_kept(systems, flags, problem, own):
    """The remedy names a flag only where it helps."""
    pairs = enumerate(zip(TEXTS, LABELS, strict=True))
    rows = own.table([_messages(*pair, systems[n % 2]) for n, pair in pairs])
    held_out = own.table([_messages("Rain?", "yes")], "test.jsonl")
    message = own.fails(rows, "--test", held_out, *flags, anchor=None)
    assert problem in message
    assert ("--system keep" in message) == bool(flags)


def _read(path: Path, **reading: Any) -> list[Any]:
    return [
        row.problem or (row.query, row.response) for row in read_rows(path, "train", **reading)[0]
    ]


@pytest.mark.parametrize(
    "mark",
    [
        {"label": False},
        {"weight": 0},
        {"weight": 0.0},
        {"loss": False},
        {"messages": [{"role": "user", "content": "a"},
                      {"role": "assistant", "content": "b", "loss": False}]},
        {"messages": [{"role": "user", "content": "a"},
                      {"role": "assistant", "content": "b", "weight": 0}]},
    ],
)  # fmt: skip
def test_marked_answers_are_never_trained_in_silence(mark, own):
    good = [
        _messages(*pair) | {"label": True, "weight": 1} for pair in zip(TEXTS, LABELS, strict=True)
    ]
    rows = own.table([*good, {**good[0], **mark}])
    assert "1 row cannot be used: rows.jsonl, line 21: marked as no answer" in own.fails(rows)
    out = own.new(rows, "--drop-broken")
    assert "left out: 1 row: rows.jsonl, line 21: marked" in out
    assert "16 training rows, 4 test rows" in out


def test_a_mark_of_a_table(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,completion,label\na,b,True\nc,d,False\n")
    assert _read(tmp_path / "rows.csv")[1].startswith("marked as no answer to learn from")
    assert _read(tmp_path / "rows.csv", columns=parse_columns("query=prompt,response=label")) == [
        ("a", "True"),
        ("c", "False"),
    ]


def test_broken_rows_are_left_out_on_request_and_listed(own):
    rows: list[Any] = [{"query": f"Question {n}", "response": f"x{n}"} for n in range(60)]
    for n in range(0, 60, 4):
        rows[n]["response"] = ""
    rows[5] = "text"
    assert "--drop-broken" in own.fails(own.table(rows))
    out = own.new(own.table(rows), "--drop-broken")
    assert (
        "left out: 16 rows: rows.jsonl, lines 1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45, 49, 53, "
        "57: the response is empty; rows.jsonl, line 6: not an object but str\n"
    ) in out


def test_turns_that_stand_in_the_answer_alone(tmp_path):
    """UltraFeedback's prompt is text, and what was chosen begins with it."""
    rows = [{"prompt": "a", "chosen": _messages("a", "b")["messages"], "rejected": []}] * 2
    assert _read(write_rows(tmp_path / "rows.jsonl", rows)) == [("a", "b")] * 2


def test_codes_are_written_as_labels(tmp_path):
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert _read(path) == [("a", "0"), ("b", "1")]
    assert _read(path, labels=parse_labels("0=no,1=yes")) == [("a", "no"), ("b", "yes")]
    assert "'1' is none of the labels" in _read(path, labels=parse_labels("0=no"))[1]
    rows = [{"text": "a", "label": True}, {"text": 7, "label": False}]
    assert _read(write_rows(path, rows)) == [("a", "true"), ("7", "false")]


BAD = {
    parse_labels: ["0", "0=", "=no", "0=no,0=yes", "0=no,"],
    parse_columns: [
        *("query=a", "a,b", "1,2,3", "query=a,query=b,response=c", "query=a,response"),
        *("query=,response=c", "query=a+,response=c", "query=a+a,response=c"),
        *("query=a+b,response=b", "1,1"),
    ],
}


@pytest.mark.parametrize("parse", BAD)
def test_labels_and_columns_that_are_none(parse):
    assert all("bad value" in message_of(parse, text) for text in BAD[parse])


def test_a_header_is_no_row(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    with pytest.raises(UserError, match="the first row looks like a header") as caught:
        _read(tmp_path / "rows.csv", columns=parse_columns("1,2"))
    assert caught.value.remedy == "--columns query=text,response=label"


def test_columns_by_number(tmp_path):
    (tmp_path / "rows.csv").write_text("rain,yes\nsun,no\n")
    assert _read(tmp_path / "rows.csv", columns=parse_columns("2,1"))[0] == ("yes", "rain")


@pytest.mark.parametrize(
    ("name", "problem", "remedy"),
    [
        ("folder", "no file", "no folder"),
        ("rows.txt", "'.txt' is no known file format", 'JSON lines such as {"query"'),
        ("nothing.csv", "no file", "correct the path"),
        ("empty.jsonl", "is empty", "check where"),
        ("header.csv", "has no rows", "check where"),
    ],
)
def test_what_is_no_file_of_rows(name, problem, remedy, tmp_path):
    (tmp_path / "folder").mkdir()
    for file, text in (("rows.txt", "x"), ("empty.jsonl", ""), ("header.csv", "query,response\n")):
        (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=problem) as caught:
        _read(tmp_path / name)
    assert remedy in str(caught.value.remedy)
