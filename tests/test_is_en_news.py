"""IS-EN-NEWS made again from aligned lines, and its extra split from a translation memory."""

import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from hashlib import md5
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import pytest

from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.sources import open_task
from tell_plugins.preparation import news
from tell_plugins.preparation.download import DIRECT
from tell_plugins.preparation.news import Frame, Segment, frame, join_documents, read_pairs
from tests.conftest import printed_by

OFFICIAL = {"train": "dev-en-is.jsonl", "test": "test-en-is.jsonl"}
Documents = list[tuple[list[str], list[str]]]


def documents(path: Path, card: str = "en_is_news") -> Documents:
    """The aligned lines of every document of an official file."""
    text = frame(load_card(card))
    found = []
    for line in path.open(encoding="utf-8", newline="\n"):
        row = json.loads(line)
        assert row["query"].startswith(text.anchor)
        assert row["response"].startswith(text.opening)
        source = row["query"].removeprefix(text.anchor).split("\n")
        target = row["response"].removeprefix(text.opening).split("\n")
        assert len(source) == len(target)
        found.append((source, target))
    return found


def test_documents_keep_order_lines_and_blanks():
    segments = [
        Segment("b", "One.  Two ", "Eitt."),
        Segment("b", "Three\u2028Four", ""),
        Segment("a", "\u201cFive\u201d", "Fimm"),
        Segment("b", "Six", "Sex"),  # the same id again is another document
    ]
    rows = [json.loads(row) for row in join_documents(segments, Frame("A\n\n ", "S\n\n ", "", ""))]
    assert rows == [
        {"query": "A\n\n One.  Two \nThree\u2028Four", "response": "S\n\n Eitt.\n"},
        {"query": "A\n\n \u201cFive\u201d", "response": "S\n\n Fimm"},
        {"query": "A\n\n Six", "response": "S\n\n Sex"},
    ]


def wmt_xml(docs: Documents, source: str, target: str) -> str:
    """WMT-21's format: the documents, and for each one that was written in the other language."""
    parts = ["<?xml version='1.0' encoding='utf-8'?>\n<dataset id='x'>\n"]
    for number, (lines, translated) in enumerate(docs):
        for origin, translator in ((source, ' translator="A"'), (target, "")):
            name = quoteattr(f"doc{number}.{origin}")
            parts.append(f'<doc id={name} origlang="{origin}">\n<src lang="{source}"><p>\n')
            parts += segs(lines)
            parts.append(f'</p></src>\n<ref lang="{target}"{translator}><p>\n')
            parts += segs(translated)
            parts.append("</p></ref>\n</doc>\n")
    return "".join([*parts, "</dataset>\n"])


def segs(lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        yield f'<seg id="{number}">{escape(line)}</seg>\n'


@pytest.fixture
def sacrebleu_at(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Point sacrebleu's data sets at a folder of the test's own, and at another archive."""
    from sacrebleu.dataset import DATASETS

    def point(
        name: str, archive: bytes = b"", url: str = "http://no-such-host.invalid/x.tgz"
    ) -> Path:
        folder = tmp_path / "sacrebleu" / name / "raw"
        monkeypatch.setattr(DATASETS[name], "_rawdir", str(folder))
        monkeypatch.setattr(DATASETS[name], "data", [url])
        monkeypatch.setattr(DATASETS[name], "md5", [md5(archive).hexdigest()])
        return folder

    return point


def archive_of(folder: Path, member: str, content: bytes) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "member").write_bytes(content)
    with tarfile.open(folder / "x.tgz", "w:gz") as tar:
        tar.add(folder / "member", arcname="../outside.txt")
        tar.add(folder / "member", arcname=member)
    return (folder / "x.tgz").read_bytes()


def test_rebuilt_through_sacrebleus_cache(real_data, tmp_path, sacrebleu_at, tell):
    for name, split, member in (
        ("wmt21/dev", "train", "dev/xml/newsdev2021.en-is.xml"),
        ("wmt21", "test", "test/newstest2021.en-is.xml"),
    ):
        path = sacrebleu_at(name) / member
        path.parent.mkdir(parents=True)
        docs = documents(real_data / "tell_official" / OFFICIAL[split])
        path.write_text(wmt_xml(docs, "en", "is"), encoding="utf-8", newline="\n")
    said = tell("data", "en_is_news", "--rebuild")
    assert said.count("1,000 lines, equal to the official file, byte by byte") == 2
    home = tmp_path / "data" / "en_is_news"
    for file in OFFICIAL.values():
        assert (home / file).read_bytes() == (real_data / "tell_official" / file).read_bytes()
        assert json.loads((home / f"{file}.provenance.json").read_text())["from"]["official"]
    assert "rebuilt from newstest2021.en-is.xml\n" in tell("data", "list", "en_is_news")

    docs[3][0][1] = docs[3][0][1].replace(" ", "", 1)  # one blank less
    path.write_text(wmt_xml(docs, "en", "is"), encoding="utf-8", newline="\n")
    built = home / OFFICIAL["test"]
    message = tell("data", "en_is_news", "--rebuild", code=2)
    assert "do not make the official file (65 documents)" in message
    assert built.read_bytes() == (real_data / "tell_official" / OFFICIAL["test"]).read_bytes()
    assert "NOT the official" in tell("data", "en_is_news", "--rebuild", "--accept")
    assert "not the official file, taken with --accept" in tell("data", "list", "en_is_news")
    built.write_bytes(built.read_bytes() + b"\n")  # and nothing else passes for it
    assert "wrong" in tell("data", "list", "en_is_news", code=1)


def test_archive_is_fetched_verified_and_one_member_taken(tmp_path, server, sacrebleu_at):
    docs: Documents = [(["One.", "Two."], ["Eitt.", "Tvö."]), (["Three & <four>"], ["Þrjú"])]
    archive = archive_of(
        tmp_path / "make",
        "test/newstest2021.is-en.xml",
        wmt_xml([(t, s) for s, t in docs], "is", "en").encode(),
    )
    server.files["/test.tgz"] = archive
    folder = sacrebleu_at("wmt21", archive, f"{server.url}/test.tgz")
    segments, origin = news.from_sacrebleu(load_card("is_en_news"), "test", DIRECT)
    assert [s.source for s in segments] == ["Eitt.", "Tvö.", "Þrjú"]
    assert [s.target for s in segments] == ["One.", "Two.", "Three & <four>"]
    assert len({s.document for s in segments}) == 2
    assert origin["archive"] == f"{server.url}/test.tgz"
    assert not (folder.parent / "outside.txt").exists()
    news.from_sacrebleu(load_card("is_en_news"), "test", DIRECT)
    assert len(server.requests) == 1


@pytest.mark.parametrize("text", ["", "<dataset/>", "<dataset><doc></dataset>"])
def test_broken_file_or_archive_of_sacrebleu(text, server, sacrebleu_at):
    server.files["/test.tgz"] = b"something else"
    folder = sacrebleu_at("wmt21", b"the right one", f"{server.url}/test.tgz")
    card = load_card("en_is_news")
    with pytest.raises(MachineError, match=r"not the right file.*md5"):
        news.from_sacrebleu(card, "test", DIRECT)
    assert [p.name for p in folder.iterdir() if not p.name.endswith(".lock")] == []
    path = folder / "test" / "newstest2021.en-is.xml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(MachineError, match="remove the file"):
        news.from_sacrebleu(card, "test", DIRECT)


LONG = " ".join(f"word{number}" for number in range(51))
LANG = " ".join(f"orð{number}" for number in range(45))


def tmx(units: list[str], head: str = "") -> str:
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n{head}<tmx version="1.4"><header/><body>\n'
        + "\n".join(units)
        + "\n</body></tmx>\n"
    )


def unit(english: str, icelandic: str, tags: tuple[str, str] = ("en", "is")) -> str:
    return (
        f'<tu><prop type="x">note</prop><tuv xml:lang="{tags[0]}"><seg>{english}</seg></tuv>'
        f'<tuv xml:lang="{tags[1]}"><seg>{icelandic}</seg></tuv></tu>'
    )


def test_the_frame_of_the_other_direction():
    other = frame(load_card("is_en_news"))
    assert other.anchor.startswith("This text is in Icelandic and needs to be translated into En")
    assert other.opening == "Sure, here is the English translation: \n\n "


def test_pairs_of_a_memory(tmp_path):
    path = tmp_path / "x.tmx"
    units = [
        unit("A  dog &amp;\n a cat", "Hundur"),
        unit(
            "<bpt i='1'>{b}</bpt>Bold<ept i='1'>{/b}</ept> <hi>high</hi>", "Feitt", ("EN-US", "IS")
        ),
        '<tu><tuv lang="is"><seg>Öfug röð</seg></tuv><tuv lang="en_GB"><seg>Order</seg></tuv></tu>',
        '<tu><tuv xml:lang="en"><seg>Alone</seg></tuv></tu>',
        unit("", "Tómt"),
        unit("Other", "Autre", ("en", "fr")),
    ]
    path.write_text(tmx(units, '<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n'), encoding="utf-8")
    assert list(read_pairs(path, ("en", "is"))) == [
        ("A dog & a cat", "Hundur"),
        ("Bold high", "Feitt"),
        ("Order", "Öfug röð"),
    ]
    utf16 = tmp_path / "utf16.tmx"
    text = path.read_text(encoding="utf-8").replace('"utf-8"', '"utf-16"')
    utf16.write_bytes(text.encode("utf-16"))
    assert len(list(read_pairs(utf16, ("is", "en")))) == 3


BOMB = '<!DOCTYPE tmx [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>\n'
OUTSIDE = '<!DOCTYPE tmx [<!ENTITY a SYSTEM "file:///etc/passwd">]>\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (tmx([unit("&b;", "x")], BOMB), "uses an entity"),
        (tmx([unit("&a;", "x")], OUTSIDE), "uses an entity"),
        (tmx([unit("&a;", "x")]), "no XML"),
        (tmx([unit("a", "b")])[:-20], "no XML"),
        ("plain text", "no XML"),
        ("", "no XML"),
        ("<html/>", "no translation unit"),
        (tmx([unit("a", "b")]).replace("utf-8", "x-unknown"), "no XML: .*x-unknown"),
    ],
)
def test_wrong_memories(tmp_path, text, message):
    path = tmp_path / "x.tmx"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as raised:
        list(read_pairs(path, ("en", "is")))
    assert "x.tmx" in str(raised.value)


@pytest.fixture
def small_cards(tmp_path, monkeypatch) -> Path:
    """Both cards with documents of the test's own, found in its data home."""
    home = tmp_path / "data"
    for name, (train, test) in {
        "en_is_news": ("dev-en-is.jsonl", "test-en-is.jsonl"),
        "is_en_news": ("dev-is-en.jsonl", "test-is-en.jsonl"),
    }.items():
        text = frame(load_card(name))
        for file in (train, test):
            docs = [[Segment(f"{n}", f"{file} line {n}.", f"{file} lína {n}.")] for n in (1, 2)]
            rows = [row for doc in docs for row in join_documents(doc, text)]
            (home / name).mkdir(parents=True, exist_ok=True)
            (home / name / file).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return home


def tm_rows(
    home: Path, card: str = "en_is_news", file: str = "tm-en-is.jsonl"
) -> list[tuple[str, str]]:
    text = frame(load_card(card))
    rows = [json.loads(line) for line in (home / card / file).open(encoding="utf-8")]
    assert all(row["query"].startswith(text.anchor) for row in rows)
    return [
        (row["query"].removeprefix(text.anchor), row["response"].removeprefix(text.opening))
        for row in rows
    ]


def test_long_new_pairs_become_a_split(small_cards, tmp_path, tell):
    held_out = f"{LONG} and so on"
    with (small_cards / "en_is_news" / "test-en-is.jsonl").open("a", encoding="utf-8") as file:
        row = join_documents([Segment("9", held_out, "Annað.")], frame(load_card("en_is_news")))
        file.write(row[0] + "\n")
    path = tmp_path / "memory.tmx"
    units = [
        unit(LONG, LANG),
        unit(LONG.upper() + ".", "Sama setning"),  # repeated but for case and a full stop
        unit(LONG + " more", LANG.title()),  # its Icelandic side is repeated
        unit(" ".join(LONG.split()[:50]), "Of stutt"),
        unit(held_out.title(), "Próf"),
        unit(LONG + " last", "dev-is-en.jsonl line 1"),  # Icelandic documents count too
        unit(LONG + " end", "Lok"),
    ]
    path.write_text(tmx(units), encoding="utf-8")
    out = tell("data", "en_is_news", "--tmx", str(path))
    assert "2 pairs (left out: 1 English side of 50 words or fewer" in out
    assert "2 a sentence of the train or test documents" in out
    assert "2 a sentence that an earlier pair has" in out
    assert tm_rows(small_cards) == [(LONG, LANG), (LONG + " end", "Lok")]
    rows = open_task(load_card("en_is_news"), "tm")
    assert len(rows) == 2
    assert rows.plain[0] == LONG
    record = json.loads((small_cards / "en_is_news" / "tm-en-is.jsonl.provenance.json").read_text())
    assert record["left_out"] == {"short": 1, "held_out": 2, "repeated": 2}
    assert "made of memory.tmx\n" in tell("data", "list", "en_is_news", code=1)
    tell("data", "is_en_news", "--tmx", str(path))
    assert (LANG, LONG) in tm_rows(small_cards, "is_en_news", "tm-is-en.jsonl")


def test_memories_of_no_use(tmp_path, tell, request):
    path = tmp_path / "memory.tmx"
    path.write_text(tmx([unit("short", "stutt")]), encoding="utf-8")
    command = ("data", "en_is_news", "--tmx")
    assert "./run.sh data en_is_news" in tell(*command, path, code=1), "the documents come first"
    home = request.getfixturevalue("small_cards")
    assert "none of its 1 pairs can be used" in tell(*command, path, code=1)
    assert not (home / "en_is_news" / "tm-en-is.jsonl").exists()
    assert "no file '/no/such.tmx'" in tell(*command, "/no/such.tmx", code=1)


BUILD = """
import sys
from pathlib import Path
from tell_plugins.core.cards import load_card
from tell_plugins.preparation.news import add_memory
add_memory(load_card("en_is_news"), Path(sys.argv[1]))
status = Path("/proc/self/status").read_text()
# not ru_maxrss: that starts at the size of the process that started this one
print("KiB", status.partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.slow
def test_large_memory_is_streamed(small_cards, tmp_path):
    path, count = tmp_path / "large.tmx", 60_000
    units = [unit(f"{LONG if n % 2 else 'short'} {n}", f"{LANG} {n}") for n in range(count)]
    path.write_text(tmx(units), encoding="utf-8")
    assert path.stat().st_size > 30e6
    said = printed_by(sys.executable, "-c", BUILD, path)  # a slow machine shows a bar, too
    assert int(said.partition("KiB ")[2].split()[0]) < 300 * 1024
    with (small_cards / "en_is_news" / "tm-en-is.jsonl").open("rb") as lines:
        assert sum(1 for _ in lines) == count // 2
