"""The mixture: what it holds, in which order, and that its hash hangs on the spec alone."""

import hashlib
import json
import os
import random
import sys
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tell_plugins.core.errors import UserError
from tell_plugins.core.manifest import manifest_of
from tell_plugins.core.mixture import SCHEMA, Mixture, build_mixture
from tell_plugins.core.spec import ORDERS, parse_spec
from tests.conftest import PROJECT, MakeCard, message_of, printed_by, write_rows
from tests.golden_texts import FOLDER, golden

Rows = list[dict[str, str]]


def _rows(name: str, count: int) -> Rows:
    """Rows of varied length; everything about them is fixed."""
    return [
        {"q": f"{name} query {n}" + " word" * (n * 7 % 13), "r": f"answer {n}" + " more" * (n % 5)}
        for n in range(count)
    ]


@pytest.fixture
def cards(make_card, monkeypatch) -> MakeCard:
    """A task card `t` (30 rows, 10 test rows) and general cards `plain` (400), `other` (300)."""
    monkeypatch.setenv("TELL_TOKENIZER", str(FOLDER / "word_tokenizer.json"))
    make_card("t", train=_rows("task", 30), test=_rows("test", 10))
    make_card("plain", kind="general", train=_rows("plain", 400))
    make_card("other", kind="general", train=_rows("other", 300))
    return make_card


def _build(text: str = "") -> Mixture:
    return build_mixture(parse_spec(f"tell/t:{text}" if text else "tell/t"))


def _queries(mixture: Mixture, role: str | None = None) -> list[str]:
    """The queries in training order, of one channel where it is named."""
    return [
        row["messages"][0]["content"]
        for row in mixture.rows()
        if role is None or row["channel"] == role
    ]


pytestmark = pytest.mark.usefixtures("cards")


# --- what it holds --------------------------------------------------------------------------------


def test_training_splits_are_joined_and_drawn_from_as_one(cards):
    more = {"splits": {name: {"file": f"{name}.jsonl"} for name in ("train", "tm", "test")}}
    folder = cards("two", train=_rows("task", 30), test=_rows("test", 10), **more)
    write_rows(folder / "tm.jsonl", _rows("memory", 20))
    both = build_mixture(parse_spec("tell/two:split=train+tm/general=0"))
    alone = [build_mixture(parse_spec(f"tell/two:split={s}/general=0")) for s in ("train", "tm")]
    assert sorted(_queries(both)) == sorted([*_queries(alone[0]), *_queries(alone[1])])
    assert both.task.place(31).endswith("tm.jsonl, line 2")
    source = manifest_of(both)["sources"][0]
    assert (source["split"], source["file"]) == ("train+tm", "train.jsonl+tm.jsonl")
    assert source["rows"]["used"] == 50
    few = build_mixture(parse_spec("tell/two:split=train+tm/task=25rows/general=0"))
    assert len(set(_queries(few)) & set(_queries(alone[1]))) not in (0, 20, 25)
    write_rows(folder / "tm.jsonl", [*_rows("memory", 20), _rows("test", 1)[0]])
    with pytest.raises(UserError, match=r"tm\.jsonl, line 21: 1 task rows are test rows"):
        build_mixture(parse_spec("tell/two:split=train+tm/general=0"))


def test_rows_as_ms_swift_reads_them():
    mixture = _build("task=3rows/general=5rows")
    rows = list(mixture.rows())
    assert len(rows) == len(mixture) == 8
    assert Counter(row["channel"] for row in rows) == {"task": 3, "general": 5}
    for row in rows:
        assert list(row) == ["messages", "channel"]
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        anchored = row["messages"][0]["content"].startswith("ANCHOR: do the task.\n\ntask query")
        assert anchored == (row["channel"] == "task")
        assert row["messages"][1]["content"].startswith("answer ")


def test_every_order_holds_the_same_rows():
    mixtures = [_build(f"general=100rows/order={order}/repeat=2") for order in ORDERS]
    contents = [Counter(_queries(mixture)) for mixture in mixtures]
    assert all(content == contents[0] for content in contents)
    assert len({mixture.hash for mixture in mixtures}) == len(ORDERS)
    assert _build("order=task_first").is_task[:30].all()
    assert _build("order=task_last").is_task[-30:].all()
    even = np.flatnonzero(_build("general=300rows/order=even").is_task)
    assert np.diff(even).min() >= 7
    assert np.diff(even).max() <= 15


@pytest.mark.parametrize("order", ["shuffle", "even"])
def test_repeat_copies_task_rows_and_spreads_them(order):
    mixture = _build(f"task=4rows/repeat=5/general=200rows/order={order}")
    task = _queries(mixture, "task")
    assert len(task) == 20
    assert set(Counter(task).values()) == {5}
    assert len(_queries(mixture, "general")) == len(set(_queries(mixture, "general"))) == 200
    assert manifest_of(mixture)["sources"][0]["rows"]["copies"] == 5
    every = _queries(mixture)
    beside = sum(one == other for one, other in pairwise(every))
    assert beside < 5, "copies are ordered one by one"
    if order == "even":
        for query in set(task):
            places = [place for place, other in enumerate(every) if other == query]
            assert min(np.diff(places)) > 220 / 5 - 220 / 20 - 1


def test_times_counts_copies_and_rounds():
    assert len(_build("task=4rows/repeat=3/general=2x")) == 12 + 24
    assert len(_build("task=5rows/general=0.5x")) == 5 + 2
    assert len(_build("task=4rows/general=0.1x")) == 4
    assert len(_build("task=4rows/general=0")) == 4


@pytest.mark.parametrize(
    ("general", "shares"),
    [("100rows", [50, 50]), ("7rows", [4, 3]), ("1rows", [1, 0]), ("3x", [45, 45])],
)
def test_several_general_cards_share_equally(general, shares):
    mixture = _build(f"from=plain+other/general={general}")
    assert [len(source.used) for source in mixture.sources[1:]] == shares
    channels = Counter(row["channel"] for row in mixture.rows())
    if all(shares):
        names = {"general_plain": shares[0], "general_other": shares[1]}
    else:
        names = {"general": shares[0]}
    assert channels == {"task": 30, **names}


def test_token_amounts_are_met_within_one_row():
    for wanted in (1, 50, 133, 400):
        mixture = _build(f"task={wanted}tok/general={3 * wanted}tok")
        assert mixture.lengths is not None
        for source, amount in zip(mixture.sources, (wanted, 3 * wanted), strict=True):
            total, last = source.tokens(), source.lengths[source.used[-1]].sum()
            assert amount <= total < amount + last
        manifest = manifest_of(mixture)
        assert manifest["tokens"] == sum(source["tokens"]["used"] for source in manifest["sources"])
        words = sum(len(m["content"].split()) for row in mixture.rows() for m in row["messages"])
        assert manifest["tokens"] == words, "query with anchor + response"


# --- sources are independent ----------------------------------------------------------------------


def test_resizing_or_adding_a_source_moves_no_other(cards):
    first = _build("task=10rows/general=40rows")
    for text in (
        "task=10rows/general=200rows",
        "task=10rows/from=plain+other/general=80rows",
        "task=10rows/general=40rows/order=even",
        "task=10rows/general=40rows/anchor=none",
    ):
        other = _build(text)
        assert other.sources[0].used.tolist() == first.sources[0].used.tolist()
        mine = other.sources[1].used.tolist()
        assert mine[:40] == first.sources[1].used.tolist()
    assert _build("task=20rows/general=40rows").sources[1].used.tolist() == (
        first.sources[1].used.tolist()
    )
    cards("other", kind="general", train=_rows("other", 120))
    both = _build("task=10rows/from=plain+other/general=80rows")
    assert both.sources[1].used.tolist() == first.sources[1].used.tolist()


# --- the hash -------------------------------------------------------------------------------------

SPEC = "task=12rows/general=150rows/from=plain+other/order=even/repeat=2/seed=7"


@pytest.mark.parametrize("general", ["all", "100rows", "500tok"])
def test_file_order_does_not_move_the_hash(cards, general):
    twice = {"q": "the same", "r": "row"}
    hashes = []
    for round_ in range(4):
        for name, count in (("t", 30), ("plain", 400), ("other", 300)):
            rows = [*_rows(name, count), twice, twice]
            random.Random(round_).shuffle(rows)
            kind: dict[str, Any] = {} if name == "t" else {"kind": "general"}
            cards(name, train=rows, **kind)
        mixture = _build(f"task=20rows/from=plain+other/general={general}")
        hashes.append((mixture.hash, manifest_of(mixture)["tokens"], list(mixture.rows())))
    assert all(entry == hashes[0] for entry in hashes)


def test_the_files_name_and_format_do_not_move_the_hash(cards, tmp_path):
    before = _build("general=50rows").hash
    card = tmp_path / "cards" / "plain" / "card.yaml"
    (card.parent / "rows.json").write_text(json.dumps(_rows("plain", 400)))
    card.write_text(card.read_text().replace("train.jsonl", "rows.json"))
    assert _build("general=50rows").hash == before


PRINT_HASH = """
import sys
from tell_plugins.core.manifest import manifest_of
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.spec import parse_spec
mixture = build_mixture(parse_spec(sys.argv[1]))
print(mixture.hash, manifest_of(mixture)["tokens"])
"""


def test_processes_do_not_move_the_hash(tmp_path):
    """Nor PYTHONHASHSEED, thread counts, locale and what is in the cache."""
    cold = str(tmp_path / "cold")
    mixture = _build(SPEC)
    expected = f"{mixture.hash} {manifest_of(mixture)['tokens']}"
    for environment in (
        {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "LC_ALL": "C", "TELL_CACHE": cold},
        {"PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "1", "PYTHONUTF8": "1", "RANK": "1"},
        {"PYTHONHASHSEED": "random", "ARROW_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "no"},
    ):
        command = [sys.executable, "-c", PRINT_HASH, f"tell/t:{SPEC}"]
        assert printed_by(*command, env={**os.environ, **environment}).strip() == expected


def test_the_hash_sees_whatever_the_model_sees(cards, tmp_path):
    base = "task=12rows/general=50rows"
    texts = [base, *(f"{base}/{more}" for more in ("anchor=none", "order=even", "seed=1"))]
    texts += [f"{base}/repeat=2", f"{base}/from=other", "task=13rows/general=50rows"]
    hashes = [_build(text).hash for text in texts]
    assert len(set(hashes)) == len(texts)
    assert _build(f"{base}/kl=1").hash == hashes[0], "how they are trained on is not what they are"
    (tmp_path / "cards" / "t" / "anchor.txt").write_text("Another anchor.")
    assert _build(base).hash not in hashes
    cards(
        "plain", kind="general", train=[{**row, "r": row["r"] + "!"} for row in _rows("plain", 400)]
    )
    assert _build(base).hash not in hashes


# --- the manifest ---------------------------------------------------------------------------------


def test_golden_manifest():
    """Count and hash of a small mixture; a change here changes every published mixture.

    To take a change over on purpose: TELL_GOLDEN=1 pytest tests/test_mixture.py -k golden
    """
    manifest = manifest_of(_build(SPEC))
    assert manifest == json.loads(golden("manifest.json", json.dumps(manifest, indent=2) + "\n"))
    assert manifest["rows"] == 12 * 2 + 150


def _keyed(row: bytes, purpose: str, card: str, seed: int = 7) -> int:
    key = hashlib.blake2b(f"{purpose}|{seed}|{card}".encode(), digest_size=32).digest()
    return int.from_bytes(hashlib.blake2b(row, key=key, digest_size=8).digest(), "little")


def _row_id(query: str, response: str) -> bytes:
    text = len(query.encode()).to_bytes(8, "little") + (query + response).encode()
    return hashlib.blake2b(text, digest_size=16).digest()


def test_the_hash_by_the_rules_written_out():
    """Draw, order and hash once more, in plain Python: what another program would have to do."""
    entries = []
    for card, count, copies, front in (
        ("t", 12, 2, "ANCHOR: do the task.\n\n"),
        ("plain", 150, 1, ""),
    ):
        rows = _rows("task" if card == "t" else card, 30 if card == "t" else 400)
        rows.sort(key=lambda row: _keyed(_row_id(row["q"], row["r"]), "draw", card))
        for row in rows[:count]:
            record = bytes([card == "t"]) + _row_id(front + row["q"], row["r"])
            for copy in range(copies):
                purpose = f"order, copy {copy}" if copy else "order"
                place = _keyed(_row_id(row["q"], row["r"]), purpose, card)
                entries.append((place, record))
    expected = hashlib.sha256(b"".join(record for _, record in sorted(entries))).hexdigest()
    assert _build("task=12rows/general=150rows/repeat=2/seed=7").hash == expected


def test_a_manifest_says_what_was_taken(cards, tmp_path):
    lines = [*_rows("plain", 20), {"q": "no response"}, {"q": "twice", "r": "x"}]
    write_rows(tmp_path / "cards" / "plain" / "train.jsonl", [*lines, {"q": "twice", "r": "x"}])
    mixture = _build("task=10rows/general=all/repeat=3")
    manifest = json.loads(json.dumps(manifest_of(mixture)))
    task, general = manifest["sources"]
    assert manifest["rows"] == 30 + 22
    assert (task["rows"]["in_file"], task["rows"]["used"], task["rows"]["copies"]) == (30, 10, 3)
    assert general["rows"]["in_file"] == 23
    assert general["rows"]["dropped"] == {"malformed": 1}
    assert general["rows"]["duplicates_kept"] == 1
    assert general["malformed_rows"][0]["line"] == 21
    lengths, is_task = mixture.lengths, mixture.is_task
    assert manifest["tokens"] == lengths.sum() == task["tokens"]["used"] + general["tokens"]["used"]
    assert manifest["trainable_tokens"] == lengths[:, 1].sum()
    assert task["tokens"]["used"] == lengths[is_task].sum()
    assert task["tokens"]["available"] > task["tokens"]["used"] / 3
    assert manifest["task_share"]["rows"] == round(30 / 52, 6)
    assert manifest["task_share"]["tokens"] == round(lengths[is_task].sum() / lengths.sum(), 6)
    assert manifest["anchor"]["characters"] == len("ANCHOR: do the task.")
    assert str(tmp_path) not in json.dumps(manifest), "no path of this machine"
    assert str(PROJECT) not in json.dumps(manifest)


# --- files ----------------------------------------------------------------------------------------


def test_files_hold_the_rows_in_training_order(tmp_path):
    mixture = _build("from=plain+other/general=1500tok")
    rows = list(mixture.rows())
    mixture.write_json_lines(tmp_path / "out" / "train.jsonl")
    lines = (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    mixture.write_arrow(tmp_path / "out" / "train.arrow")
    with pa.memory_map(str(tmp_path / "out" / "train.arrow")) as source:
        table = pa.ipc.open_stream(source).read_all()
    assert table.schema == SCHEMA
    assert table.to_pylist() == rows
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "train.arrow",
        "train.jsonl",
    ]


def test_texts_of_every_script_survive(cards, tmp_path):
    texts = ["þæö", "日本語", "😀" * 50, "\u0000\u2028\x1f", 'q"\\/', "a\r\nb\tc", "x" * 99_999]
    cards("t", train=[{"q": text, "r": text[::-1]} for text in texts])
    mixture = _build("general=0/anchor=none")
    found = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in mixture.rows()}
    assert found == {text: text[::-1] for text in texts}
    mixture.write_json_lines(tmp_path / "train.jsonl")
    with (tmp_path / "train.jsonl").open(encoding="utf-8", newline="\n") as file:
        assert [json.loads(line) for line in file] == list(mixture.rows())


# --- other uses -----------------------------------------------------------------------------------


def test_a_general_card_alone():
    mixture = build_mixture(parse_spec("tell/plain:task=50rows"))
    assert mixture.task is None
    assert Counter(row["channel"] for row in mixture.rows()) == {"general": 50}
    assert not mixture.is_task.any()
    manifest = manifest_of(mixture)
    assert manifest["anchor"] is None
    assert manifest["task_share"]["rows"] == 0
    assert manifest["overlap"] == {
        "rule": "drop",
        "checked": False,
        "general_rows_that_are_held_out_queries": None,
        "of_these_used": None,
    }
    drawn = _build("general=50rows").sources[1].used.tolist()
    assert mixture.sources[0].used.tolist() == drawn, "the control trains on the same rows"


def test_a_held_out_split_has_no_general_rows():
    for text in ("split=test", "split=test/from=plain"):
        mixture = _build(text)
        assert len(mixture) == 10
        assert mixture.is_task.all()
    assert len(_build("split=test/general=5rows")) == 15  # unless it is asked for


def test_rows_over_max_tokens_are_dropped_and_counted(cards):
    cards("plain", kind="general", train=_rows("plain", 400), max_tokens=10)
    mixture = _build("general=all")
    general = mixture.lengths[~mixture.is_task].sum(axis=1)
    assert general.max() == 10
    dropped = manifest_of(mixture)["sources"][1]["rows"]["dropped"]["over_max_tokens"]
    assert len(general) == 400 - dropped
    cards("plain", kind="general", train=_rows("plain", 400), max_tokens=1)
    assert "the mixture is empty" in message_of(build_mixture, parse_spec("tell/plain"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from=plian", "did you mean 'plain'"),
        ("from=plian/general=0", "did you mean 'plain'"),
        ("from=plian/split=test", "did you mean 'plain'"),
        ("from=t", "card 't' is task data"),
        ("split=tset", "did you mean 'test'"),
        ("anchor=anchr", "did you mean 'anchor'"),
        ("task=31rows", "31rows asked, but there are only 30 rows"),
        ("general=401rows", "general data 'plain': 401rows asked, but there are only 400 rows"),
        ("general=40x", "1200rows asked, but there are only 400 rows"),
        ("from=plain+other/general=700rows", "general data 'other': 350rows asked"),
        ("task=1e6tok", "1e6tok asked, but there are only"),
        *(
            (f"tell/plain:{key}", "'plain' is general data")
            for key in ("general=5rows", "repeat=2")
        ),
        *((f"tell/plain:{key}", "'plain' is general data") for key in ("from=other", "order=even")),
        ("tell/plain:anchor=none", "'plain' is general data"),
    ],
)
def test_what_cannot_be_built(text, message):
    text = text if text.startswith("tell/") else f"tell/t:{text}"
    assert message in message_of(lambda: build_mixture(parse_spec(text)))
