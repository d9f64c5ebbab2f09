"""`./run.sh data`: cards made ready from addresses, hubs, folders; listed and shown."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from tell_plugins.cli import main
from tell_plugins.core.rows import file_sha256
from tell_plugins.preparation import llama2_tokenizer
from tests.conftest import PROJECT, MakeCard, change, printed_by, write_rows
from tests.file_server import FileServer, blob_of, cut_after
from tests.hub_server import REVISION, hub

ROWS = [{"q": f"question {n}", "r": f"answer {n}", "note": "x"} for n in range(7)]
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture
def server(server) -> FileServer:
    server.files["/x/rows.jsonl"] = CONTENT
    return server


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "data"


def general_card(make_card: MakeCard, name: str = "far", **split: object) -> Path:
    """A general card whose one split lies elsewhere."""
    folder = make_card(name, kind="general", train=[{"q": "a", "r": "b"}])
    (folder / "train.jsonl").unlink()
    change(folder, splits={"train": {"file": "rows.jsonl", "rows": 7, **split}})
    return folder


# --- files with an address -----------------------------------------------------------------------


def test_card_is_made_ready_listed_and_left_alone(make_card, server, home, tell):
    url = f"{server.url}/x/rows.jsonl"
    general_card(make_card, url=url, blob=blob_of(CONTENT))
    assert "missing  ./run.sh data far" in tell("data", "list", "far")
    assert "train: is ready, verified (git blob id)" in tell("data", "far")
    file = home / "far" / "rows.jsonl"
    assert file.read_bytes() == CONTENT
    record = json.loads((home / "far" / "rows.jsonl.provenance.json").read_text())
    assert record["from"] == {"place": url, "official": url, "git_blob": blob_of(CONTENT)}
    assert record["sha256"] == file_sha256(file)
    assert "train: is here, verified (git blob id)" in tell("data", "far")
    out = tell("data", "list", "far")
    assert "7  verified  git blob id" in out
    assert f"from {url}" in out
    assert len(server.requests) == 1
    general_card(make_card, "far")
    (home / "far" / "rows.jsonl.provenance.json").write_text(
        json.dumps({"sha256": record["sha256"]})
    )
    assert "7  own    no checksum is known" in tell("data", "list", "far")


def test_wrong_file_is_listed_and_replaced(make_card, server, home, tell):
    general_card(make_card, url=f"{server.url}/x/rows.jsonl", blob=blob_of(CONTENT))
    write_rows(home / "far" / "rows.jsonl", ROWS[:3])
    assert "3 of 7  wrong  not the official file" in tell("data", "list", "far", code=1)
    server.script = [cut_after(100)]
    tell("data", "far")
    assert (home / "far" / "rows.jsonl").read_bytes() == CONTENT
    assert (home / "far" / "rows.jsonl.not-official").exists()
    write_rows(home.parent / "cards" / "far" / "rows.jsonl", ROWS[:3])
    assert "another of its name is found before it" in tell("data", "far", code=1)


def test_a_dead_server_is_asked_for_one_file_of_a_card(make_card, tell):
    there = {"url": "http://127.0.0.1:9/resolve/x", "blob": "0" * 40}
    splits = {name: {"file": f"{name}.rows", **there} for name in ("train", "test")}
    change(general_card(make_card), splits=splits)
    assert tell("data", "far", "--tries", "1", code=2).count("Connection refused") == 1


def test_a_mirrors_password_is_not_recorded(make_card, server, home, tell):
    mirror = f"{server.url}/x".replace("http://", "http://bob:secret@")
    for name, split in (("far", {"modelscope": "o/n"}), ("near", {"blob": blob_of(CONTENT)})):
        url = {"url": f"{server.url}/x/rows.jsonl"} if "blob" in split else {}
        general_card(make_card, name, **split, **url)
        tell("data", name, "--mirror", mirror)
        record = (home / name / "rows.jsonl.provenance.json").read_text()
        assert f'"place": "{server.url}/x/rows.jsonl"' in record
        assert "secret" not in record
    assert "secret" not in tell("data", "list")


def test_what_fails_is_told_after_the_rest_is_ready(make_card, server, home, tell):
    general_card(make_card, "gone", url=f"{server.url}/gone.jsonl", blob=blob_of(b"x"))
    general_card(make_card, url=f"{server.url}/x/rows.jsonl", blob=blob_of(CONTENT))
    captured = tell("data", "gone", "far", code=2)
    assert "train: is ready" in captured
    assert "HTTP 404" in captured


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"url": "http://host/rows.jsonl"}, "nothing says where 'rows.jsonl' can be had"),
        ({"url": "ftp://host/rows.jsonl", "blob": "0" * 40}, "ftp://host/rows.jsonl: no address"),
        ({"file": "../rows.jsonl", "url": "http://h/x", "blob": "0" * 40}, "no plain file name"),
        ({}, "nothing says where 'rows.jsonl' can be had"),
    ],
)
def test_cards_that_cannot_be_followed(make_card, split, message, tell):
    general_card(make_card, **split)
    assert message in tell("data", "far", code=1)


def test_official_files_from_a_mirror_and_from_a_folder(real_data, server, home, tell):
    for path in (real_data / "tell_official").iterdir():
        server.files[f"/{path.name}"] = path.read_bytes()
    server.script = [cut_after(100_000)]
    tell("data", "en_is_news", "--mirror", server.url)
    for name in ("dev-en-is.jsonl", "test-en-is.jsonl"):
        official = (real_data / "tell_official" / name).read_bytes()
        assert (home / "en_is_news" / name).read_bytes() == official
    assert server.requests[:2] == ["/dev-en-is.jsonl"] * 2  # the first was cut
    # the training file is not there, the test file is
    captured = tell("data", "halu_cot_json", "--from", str(real_data), code=1)
    assert "test: is ready, verified" in captured
    assert "no file 'dev_Halu_CoT_JSON.jsonl'" in captured


# --- hubs ----------------------------------------------------------------------------------------


def hub_process(tmp_path: Path, url: str, *words: str) -> str:
    """What `data` prints where a hub answers at the address, or none does."""
    folders = ("MODELSCOPE_CACHE", "MODELSCOPE_HOME", "HF_HOME")
    environment = {**os.environ, **dict.fromkeys(folders, str(tmp_path / "hub"))}
    environment |= {"MODELSCOPE_ENDPOINT": url, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "tell_plugins", "data", *words]
    return printed_by(*command, code=2, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modelscope", "huggingface"])
def test_real_loaders_against_a_hub(make_card, tmp_path, home, name):
    with hub() as server:
        server.data_sets = {
            "o/good": CONTENT,
            "o/short": b"".join(CONTENT.splitlines(keepends=True)[:3]),
            "o/columns": b'{"text": "a"}\n{"text": "b"}\n',
        }
        cards = ("good", "short", "columns", "none")
        for number, card in enumerate(cards):
            ids = {"modelscope": f"o/{card}", "huggingface": f"o/{card}"}
            general_card(make_card, card, file=f"rows{number}.jsonl", **ids)
        said = hub_process(tmp_path, server.url, *cards, "--hub", name)
        assert "Traceback" not in said
        assert "train: is ready, verified (sha256 as recorded beside it)" in said
        assert "came with 3 rows (3 usable), the card says 7" in said
        assert "Current columns in the dataset: ['text']" in said
        assert "o/none could not be loaded from" in said
        assert sorted(p.name for p in home.glob("*/rows*.jsonl")) == ["rows0.jsonl"]
    rows = [json.loads(line) for line in (home / "good" / "rows0.jsonl").open()]
    assert rows == [{"q": row["q"], "r": row["r"]} for row in ROWS]
    record = json.loads((home / "good" / "rows0.jsonl.provenance.json").read_text())
    assert (record["from"]["hub"], record["from"]["id"], record["rows"]) == (name, "o/good", 7)
    assert record["from"]["revision"] == (REVISION if name == "huggingface" else "master")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modelscope", "huggingface"])
def test_hub_that_cannot_be_reached(make_card, tmp_path, home, name):
    ids = {"modelscope": "o/n", "huggingface": "o/n"}
    files = {"train": "rows.jsonl", "validation": "second.jsonl"}
    splits = {split: {"file": file, **ids} for split, file in files.items()}
    change(general_card(make_card), splits=splits)
    began = time.monotonic()
    said = hub_process(tmp_path, "http://127.0.0.1:9", "far", "--hub", name)
    assert time.monotonic() - began < 60
    assert said.count("o/n could not be loaded from") == 1  # one message, not one a file
    assert "the hub does not answer" in said
    other = "huggingface" if name == "modelscope" else "modelscope"
    assert f"--hub {other}; or --mirror URL or --from DIR, where 'rows.jsonl' lies" in said
    assert not list(home.glob("far/*.jsonl"))


@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_hub_data_from_a_folder(make_card, tmp_path, home, form, tell):
    general_card(make_card, modelscope="o/n")
    file = tmp_path / "usb" / "deep" / f"rows.{form}"
    write_rows(file, ROWS)
    if form == "json":
        file.write_text(json.dumps(ROWS))
    elif form == "csv":
        lines = [",".join(row.values()) for row in ROWS]
        file.write_text("\n".join(["q,r,note", *lines]) + "\n")
    tell("data", "far", "--from", str(tmp_path / "usb"))
    rows = [json.loads(line) for line in (home / "far" / "rows.jsonl").open()]
    assert rows == [{"q": row["q"], "r": row["r"]} for row in ROWS]
    assert "7  verified  sha256 as recorded beside it" in tell("data", "list", "far")
    (home / "far" / "rows.jsonl").write_bytes(CONTENT)
    assert "changed" in tell("data", "list", "far", code=1)


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (CONTENT[:-30], 1, "no JSON"),
        (b'{"q": "a"}\n', 1, "no row with the columns q, r"),
        (CONTENT * 2, 2, "came with 14 rows (14 usable), the card says 7; nothing was kept"),
        (b"", 1, "the file is empty"),
    ],
)
def test_wrong_rows_from_a_mirror(make_card, server, home, content, code, message, tell):
    general_card(make_card, modelscope="o/n")
    server.files["/x/rows.jsonl"] = content
    assert message in tell("data", "far", "--mirror", f"{server.url}/x", code=code)
    assert not list((home / "far").glob("*rows.jsonl"))
    if code == 2:
        tell("data", "far", "--mirror", f"{server.url}/x", "--accept")


# --- the tokenizer and the model -----------------------------------------------------------------


@pytest.fixture
def small_tokenizer(tmp_path, monkeypatch) -> Path:
    """A word tokenizer that the test takes for Llama-2's."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    vocabulary = {word: n for n, word in enumerate(["[UNK]", "the", "quick", "def", "is"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    path = tmp_path / "made" / "tokenizer.json"
    path.parent.mkdir()
    tokenizer.save(str(path))
    digest = llama2_tokenizer.digest(list(vocabulary))
    monkeypatch.setattr(llama2_tokenizer, "VOCABULARY", digest)
    encodings = [
        tokenizer.encode(text, add_special_tokens=False).ids for text in llama2_tokenizer.PROBES
    ]
    monkeypatch.setattr(llama2_tokenizer, "TOKENS", llama2_tokenizer.digest(encodings))
    return path


@pytest.mark.parametrize("name", ["modelscope", "huggingface"])
def test_tokenizer_from_a_hub(small_tokenizer, server, home, name, monkeypatch, tell):
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/hf/")
    # another serialisation of the same content
    text = json.dumps(json.loads(small_tokenizer.read_text()), indent=3)
    server.files = {
        "/api/v1/models/modelscope/Llama-2-7b-chat-ms/repo": text.encode(),
        "/hf/NousResearch/Llama-2-7b-chat-hf/resolve/main/tokenizer.json": text.encode(),
    }
    assert "is ready, verified (vocabulary and tokens)" in tell(
        "data", "llama2_tokenizer", "--hub", name
    )
    assert (home / "llama2_tokenizer" / "tokenizer.json").read_text() == text
    assert "is here, verified" in tell("data", "llama2_tokenizer")
    assert "verified as Llama-2's" in tell("data", "list")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"quick"', '"slow"'), "another vocabulary than Llama-2's"),
        (lambda text: text.replace('"Whitespace"', '"WhitespaceSplit"'), "into other tokens"),
        (lambda text: text[:-5], "no tokenizer file of Llama-2's kind"),
        (lambda text: "{}", "no tokenizer file of Llama-2's kind"),
    ],
)
def test_another_tokenizer_is_refused(small_tokenizer, home, change, message, tell):
    small_tokenizer.write_text(change(small_tokenizer.read_text()))
    command = ["data", "llama2_tokenizer", "--from", str(small_tokenizer.parent)]
    assert message in tell(*command, code=1)
    assert not (home / "llama2_tokenizer" / "tokenizer.json").exists()


@pytest.mark.parametrize("named", [True, False], ids=["by the user", "found first"])
def test_a_tokenizer_that_counts_in_place_of_the_right_one(
    named, small_tokenizer, home, tmp_path, monkeypatch, tell
):
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram

    other = tmp_path / "a" / "tokenizer.json"  # of another kind: its vocabulary is a list
    if not named:
        other = home / "tokenizers" / "llama2" / "tokenizer.json"
    other.parent.mkdir(parents=True)
    Tokenizer(Unigram([("<unk>", 0.0), ("the", -1.0)], unk_id=0)).save(str(other))
    if named:
        monkeypatch.setenv("TELL_TOKENIZER", str(small_tokenizer))
        assert "is here, verified" in tell("data", "llama2_tokenizer")
        monkeypatch.setenv("TELL_TOKENIZER", str(other))
    said = tell("data", "llama2_tokenizer", "--from", str(small_tokenizer.parent), code=1)
    assert "another is found before it" in said
    assert "unset $TELL_TOKENIZER" in said
    assert "is ready, verified" not in said


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alpaca_eng"], "did you mean 'alpaca_en'?"),
        (["lst"], "did you mean 'list'?"),
        (["gsm8k", "alpaka_en"], "did you mean 'alpaca_en'?"),
        (["--mirror", "http://x", "gsm8k"], "option '--mirror' stands before the name"),
        (["gsm8k", "--from", "/no/such/folder"], "no folder '/no/such/folder'"),
        (["gsm8k", "--mirror", "file:///x"], "no address"),
        (
            ["halu_cot_json", "--rebuild", "--thoughts", "spans", "--from", "/no/such/folder"],
            "no folder '/no/such/folder'",
        ),
        (["halu_cot_json", "--rebuild", "--thoughts", "spans", "--tries", "0"], "0 is too small"),
        (["gsm8k", "--wait", "0"], "0 is too small"),
        (["en_is_news", "is_en_news", "--rebuild"], "one data set is rebuilt at a time"),
        (["show", "gsm8k", "--split", "tset"], "did you mean 'test'?"),
        (["show", "gsm8k"], "./run.sh data gsm8k"),
        (["list", "gsm9k"], "did you mean 'gsm8k'?"),
        (["gsm8k", "--mirro", "x"], "unrecognized arguments: --mirro"),
        (["list", "--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_wrong_words(words, message, tell):
    assert message in tell("data", *words, code=1)


HELP = {
    "--help": "overlap",
    "list": "NAME",
    "show": "--split",
    "overlap": "--similarity",
    "selfgen": "--model",
    "gsm8k": "--mirror URL",
    "en_is_news": "--tmx FILE",
    "halu_cot_json": "--base-url",
    "llama2_tokenizer": "--hub",
    "smollm2": "NAME",
}


@pytest.mark.parametrize("word", HELP)
def test_help(word, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["data", word, "--help"] if word != "--help" else ["data", word])
    assert stopped.value.code == 0
    assert HELP[word] in capsys.readouterr().out


# --- show ----------------------------------------------------------------------------------------


def test_show_a_task(tell, monkeypatch):
    out = tell("data", "show", "sample_complaints", "--split", "test")
    anchor = (PROJECT / "datasets/sample_complaints/anchor.txt").read_text().strip()
    first = json.loads((PROJECT / "datasets/sample_complaints/test.jsonl").open().readline())
    shown = "".join(line.removeprefix("  ") for line in out.splitlines(keepends=True))
    assert f"[user]\n{anchor}\n\n{first['query']}\n[assistant]\n" in shown
    assert out.count("--- row ") == 3
    assert "rows     100" in out
    assert "labels" in out
    assert "query, words" in out
    assert all(card.name in tell("data") for card in (PROJECT / "datasets").iterdir())
    monkeypatch.setenv("TELL_TOKENIZER", str(PROJECT / "tests/golden/word_tokenizer.json"))
    assert "response, tokens (" in tell("data", "show", "sample_complaints", "--rows", "0")


def test_show_general_data_with_unusable_and_long_rows(make_card, tell):
    rows = [{"q": "long " * 1000, "r": "x"}, {"q": "", "r": "y"}, *ROWS, ROWS[0]]
    make_card("plain", kind="general", train=rows)
    out = tell("data", "show", "plain")
    assert "rows     9, 1 of them with the query of an earlier row" in out
    assert "unusable 1, first: line 2: the query is empty" in out
    assert "characters left out" in out
    assert "characters left out" not in tell("data", "show", "plain", "--full")
    make_card("plain", kind="general", train=[{"q": "今天天气很好，OK?", "r": "ひらがな です"}])
    counted = " ".join(tell("data", "show", "plain").split())
    assert "query, words 7 " in counted, "six characters, and what stands behind them"
    assert "response, words 6 " in counted
