"""Token counts word by word: the same as of whole texts, whatever stands in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tell_plugins.core import words
from tell_plugins.core.sources import keys_of
from tell_plugins.core.tokens import TokenCounter
from tell_plugins.core.words import Words, rule_of
from tests.conftest import PROJECT, REAL_DATA

_TEXT = (
    "It's the answer, isn't it? Well, 12 of 2024 answers (or so) are the right ones!\n"
    "def answer(self):\n    return self.right  # the right one\n\nDie Größe: 1,5 m²; naïve café."
)
_GPT_4 = words._PARTS.replace(r"\p{N}|", r"\p{N}{1,3}|")


def _trained(pre: Any, normalizer: Any = None, after: Any = None) -> Tokenizer:
    """A tokenizer of a few hundred pieces; `after` replaces its pre-tokenizer once trained."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=[] if after else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT] * 4, trainer)
    if after is None:
        return tokenizer
    saved = json.loads(tokenizer.to_str())
    saved["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(saved))


def _by_bytes(**options: bool) -> Any:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})


def _split(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, _by_bytes(use_regex=False)])


def _llama_2() -> Tokenizer:
    blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    parted = pre_tokenizers.Split("▁", "merged_with_next")
    return _trained(parted, normalizers.Sequence(blanks), after="none")


def _real(path: Path) -> Callable[[], Tokenizer]:
    def load() -> Tokenizer:
        if not path.is_file():
            pytest.skip(f"needs {path.name} of {path.parent.name}")
        return Tokenizer.from_file(str(path))

    return load


_KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: _trained(_by_bytes(add_prefix_space=True)),
    "digits": lambda: _trained(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _by_bytes()])
    ),
    "llama-3": lambda: _trained(_split(_GPT_4)),
    "qwen": lambda: _trained(_split(words._PARTS), normalizers.NFC()),
    "llama-2": _llama_2,
    "the llama-2": _real(REAL_DATA / "tokenizers" / "llama2" / "tokenizer.json"),
    "the smollm2": _real(PROJECT / "models" / "SmolLM2-135M-Instruct" / "tokenizer.json"),
}
_made = lru_cache(maxsize=None)(lambda kind: _KINDS[kind]())


def _whole(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return [len(one) for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _counter(tokenizer: Tokenizer) -> Words:
    return Words(rule_of(tokenizer.to_str()), lambda texts: _whole(tokenizer, texts))


_PIECES = st.sampled_from(
    [
        *"  \n\t\r\v\f\x1c\x85\xa0\u2028\u3000\u200b",
        *"aZé1²½٣'’.,!?-_(#▁中é🙂\u0301\u0338;",
        *("  ", "\n\n", " \n ", "the", " the", " answer", "isn't", "'s", " 2024", "Größe"),
        *("<s>", "</s>"),
    ]
)


@pytest.mark.parametrize("kind", _KINDS)
def test_the_words_of_any_text_make_up_its_count(kind: str) -> None:
    tokenizer = _made(kind)
    counter = _counter(tokenizer)
    assert rule_of(tokenizer.to_str()) is not None

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.lists(_PIECES | st.text(max_size=4)).map("".join), max_size=6))
    def holds(texts: list[str]) -> None:
        assert counter.count(texts).tolist() == _whole(tokenizer, texts)

    holds()
    plain = [_TEXT, _TEXT.replace("\n", " "), "", " ", "a", " a", "a ", "a  b", *_TEXT.split("\n")]
    assert counter.count(plain).tolist() == _whole(tokenizer, plain)


def _changed(kind: str, **changes: Any) -> str:
    saved = json.loads(_made(kind).to_str())
    for key, value in changes.items():
        if key in saved["model"]:
            saved["model"][key] = value
        else:
            saved[key] = value
    return json.dumps(saved)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt-2", {"dropout": 0.1}),
        ("gpt-2", {"normalizer": {"type": "NFKC"}}),
        ("gpt-2", {"pre_tokenizer": {"type": "Whitespace"}}),
        ("gpt-2", {"pre_tokenizer": None}),
        ("gpt-2", {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True,
                                     "trim_offsets": True, "use_regex": False}}),
        ("llama-2", {"normalizer": None}),
        ("llama-2", {"ignore_merges": True}),
        ("llama-2", {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁",
                                       "prepend_scheme": "first", "split": False}}),
    ],
)  # fmt: skip
def test_what_is_not_proven_is_counted_as_a_whole(kind: str, changes: dict[str, Any]) -> None:
    assert rule_of(_changed(kind)) is not None
    assert rule_of(_changed(kind, **changes)) is None


def test_pieces_across_a_blank_are_seen() -> None:
    vocabulary = json.loads(_made("llama-2").to_str())["model"]["vocab"]
    across = {**vocabulary, "of▁the": len(vocabulary)}
    assert rule_of(_changed("llama-2", vocab=across)) is None


@pytest.mark.parametrize(
    "token", [AddedToken("of the"), AddedToken("<x>", lstrip=True), AddedToken("y", rstrip=True)]
)
def test_added_tokens_that_take_their_surroundings_are_seen(token: AddedToken) -> None:
    tokenizer = _trained(_by_bytes())
    assert rule_of(tokenizer.to_str()) is not None
    tokenizer.add_special_tokens([token])
    assert rule_of(tokenizer.to_str()) is None
    texts = ["one of the", "a <x> b", " y "]
    assert _counter(tokenizer).count(texts).tolist() == _whole(tokenizer, texts)


def test_rows_are_counted_in_batches_and_each_word_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tell_plugins.core.cards import Columns
    from tell_plugins.core.rows import open_rows
    from tests.conftest import write_rows

    path = tmp_path / "tokenizer.json"
    _made("gpt-2").save(str(path))
    asked: list[list[str]] = []
    learn = Words._learn

    def spy(self: Words, known: dict[str, int], new: list[str], front: str) -> None:
        asked.append([word for word in new if word not in known])
        learn(self, known, new, front)

    monkeypatch.setattr(Words, "_learn", spy)
    made = [{"q": f"row {n}", "r": f"the answer {n % 10}"} for n in range(2500)]
    rows = open_rows(write_rows(tmp_path / "rows.jsonl", made), Columns(query="q", response="r"))
    lengths = TokenCounter(path).lengths(keys_of(rows.ids), rows.texts)
    assert len(asked) == 6, "three batches, first words and later ones"
    assert sum(map(len, asked)) == 2 + 2500 + 1, "row, the; the numbers; answer"
    texts = [text for pair in rows.all_texts() for text in pair]
    assert lengths.ravel().tolist() == _whole(_made("gpt-2"), texts)
