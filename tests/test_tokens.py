"""Token counts: right, cached by content, on the real tokenizer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tell_plugins.core import tokens
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.manifest import manifest_of
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import lengths_of, open_task
from tell_plugins.core.spec import parse_spec
from tell_plugins.core.text import row_ids
from tell_plugins.core.tokens import TokenCounter, tokenizer_file
from tests.conftest import PROJECT, message_of

Positions = npt.NDArray[np.int64]
WORDS = PROJECT / "tests" / "golden" / "word_tokenizer.json"


@pytest.fixture
def word_tokenizer(tmp_path, monkeypatch) -> Path:
    """A tokenizer that counts words, under `$TELL_TOKENIZER`."""
    return save_word_tokenizer(tmp_path / "tokenizer.json", monkeypatch)


def save_word_tokenizer(path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Path:
    """A tokenizer that counts words, with other settings, under `$TELL_TOKENIZER`."""
    path.write_text(json.dumps({**json.loads(WORDS.read_text()), **settings}))
    monkeypatch.setenv("TELL_TOKENIZER", str(path))
    return path


class Source:
    """Rows that remember for which of them the texts were asked."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs
        self.ids = row_ids(pairs)
        self.asked: list[int] = []

    def texts(self, rows: Positions) -> list[tuple[str, str]]:
        self.asked += rows.tolist()
        return [self.pairs[row] for row in rows]


def _source(count: int) -> Source:
    return Source([(f"query {'w ' * n}", "r " * (n % 7) + "r") for n in range(count)])


def _expected(source: Source) -> list[list[int]]:
    return [[len(q.split()), len(r.split())] for q, r in source.pairs]


def test_rows_are_counted_once(word_tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "_BATCH", 10)
    source = _source(30)
    for asked in ([*range(30)], []):
        source.asked.clear()
        found = TokenCounter(word_tokenizer).lengths(source.ids, source.texts)
        assert found.tolist() == _expected(source)
        assert source.asked == asked
    fewer = TokenCounter(word_tokenizer).lengths(source.ids[:7], source.texts)
    assert fewer.tolist() == _expected(source)[:7]


def test_truncation_and_padding_of_a_saved_tokenizer_do_not_falsify_counts(tmp_path, monkeypatch):
    path = save_word_tokenizer(
        tmp_path / "cut.json",
        monkeypatch,
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[UNK]",
        },
    )
    assert TokenCounter(path).count(["a b c d e f g", "a"]).tolist() == [7, 1]


def test_special_tokens_are_not_counted(tmp_path, word_tokenizer):
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(word_tokenizer))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(tmp_path / "special.json"))
    assert TokenCounter(tmp_path / "special.json").count(["a b"]).tolist() == [2]


def test_where_the_tokenizer_is_looked_for(tmp_path, monkeypatch):
    assert tokenizer_file() is None
    for place in ("llama2_tokenizer", "tokenizers/llama2"):  # the second beats the first
        path = tmp_path / "data" / place / "tokenizer.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        assert tokenizer_file() == path
    own = save_word_tokenizer(tmp_path / "tokenizer.json", monkeypatch)
    assert tokenizer_file() == own
    monkeypatch.setenv("TELL_TOKENIZER", str(tmp_path))
    assert tokenizer_file() == own
    monkeypatch.setenv("TELL_TOKENIZER", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no tokenizer at") as caught:
        tokenizer_file()
    assert caught.value.where == "$TELL_TOKENIZER"


@pytest.mark.parametrize("content", ["", "{}", "hello", '{"version": "1.0"}'])
def test_a_file_that_is_no_tokenizer(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    assert "no tokenizer file" in message_of(TokenCounter(path).count, ["a"])


def test_without_a_tokenizer_rows_work_and_tokens_say_what_is_missing(make_card):
    rows = [{"q": f"q {n}", "r": "r"} for n in range(20)]
    make_card("t", train=rows[:5])
    make_card("plain", kind="general", train=rows)
    mixture = build_mixture(parse_spec("tell/t:general=2x"))
    manifest = manifest_of(mixture)
    assert manifest["tokenizer"] is None
    assert manifest["tokens"] is None
    assert mixture.lengths is None
    for text in ("general=5tok", "task=5tok"):
        with pytest.raises(UserError, match="needs a tokenizer to count with") as caught:
            build_mixture(parse_spec(f"tell/t:{text}"))
        assert "$TELL_TOKENIZER" in str(caught.value.remedy)
    make_card("plain", kind="general", train=rows, max_tokens=9)
    with pytest.raises(UserError, match="'max_tokens' of card 'plain' needs a tokenizer"):
        build_mixture(parse_spec("tell/t"))


@pytest.mark.usefixtures("real_home")
def test_the_llama_2_tokenizer():
    path = tokenizer_file()
    counter = TokenCounter(path)
    assert counter.name == "llama2/tokenizer.json"
    assert counter.count(["Hello world", "", "Þetta er íslenska."]).tolist() == [2, 0, 8]


@pytest.mark.usefixtures("real_home")
def test_71_documents_of_en_is():
    path = tokenizer_file()
    task = open_task(load_card("en_is_news"), "train")
    lengths = lengths_of(task, TokenCounter(path))
    assert len(lengths) == 71
    assert lengths.sum() == pytest.approx(1.02e5, rel=0.05)
    assert (lengths.sum(axis=1) > 2048).sum() == 12
