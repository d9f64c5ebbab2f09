"""Texts: how they are compared, earlier turns inside of them, and tokens that steer models.

Rows that differ only in case, spacing or invisible signs are equal.

A query is one text everywhere: it is hashed, anchored, counted and drawn as such. Where a row has
earlier turns they are part of that text, and `MARK` parts user from assistant.

Inside a row, a tokenizer reads control tokens as what they are: `<|im_end|>` in the middle of a
response ends the answer there, in training and when answering.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

MARK = "\x03\x02"  # end of text, start of text; no white space, so that no strip takes it off


def turns_of(query: str) -> list[str]:
    """The user, assistant, user, ... turns of a query."""
    return query.split(MARK)


def row_of(query: str, response: str) -> dict[str, Any]:
    """A row as this project writes it to JSON lines; `history` is there where turns are."""
    *earlier, last = turns_of(query)
    row: dict[str, Any] = {"query": last, "response": response}
    if earlier:
        row["history"] = [list(pair) for pair in zip(earlier[::2], earlier[1::2], strict=True)]
    return row


def first_turn(query: str) -> str:
    """The turn that an anchor stands in front of."""
    return query.partition(MARK)[0]


def messages_of(query: str) -> list[dict[str, Any]]:
    """The turns of a query as messages; of the assistant's, none is trained but the response."""
    return [
        {"role": "assistant", "content": text, "loss": 0.0}
        if number % 2
        else {"role": "user", "content": text}
        for number, text in enumerate(turns_of(query))
    ]


KNOWN = (
    # ChatML, Qwen, SmolLM, GPT
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|endofprompt|>",
    # Llama 2, Mistral; Llama 3, Llama 4
    "<s>", "</s>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|eot|>", "<|header_start|>",
    "<|header_end|>",
    # Gemma, Phi, GLM, gpt-oss
    "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>",
    "<|observation|>", "<|start|>", "<|channel|>", "<|message|>", "<|return|>",
    # DeepSeek
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>",
)  # fmt: skip


def any_of(tokens: Iterable[str]) -> str:
    """A regular expression that finds any of the tokens."""
    return "|".join(map(re.escape, tokens))


def found_in(text: str, tokens: Iterable[str] = KNOWN) -> str | None:
    """One of the tokens that a text holds, None where it holds none."""
    return next((token for token in tokens if token in text), None)


# What Unicode lets a screen leave out (Default_Ignorable_Code_Point): zero-width characters, soft
# hyphens, marks of direction, variation selectors. Not the tags that make a flag's country.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0100-\U000e01ef]"
)
_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")  # else 10\u00b2 were 102
# other shapes of one sign: dashes and the minus, quotation marks
_SHAPES = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
    | dict.fromkeys("\u2018\u2019\u201a\u201b", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)
_FULL_STOP = re.compile(r"(?<=[^\s.\u3002])[.\u3002]$")


def normalise(text: str) -> str:
    """NFKC, case folded, one shape of dashes and quotes, blanks one space, nothing invisible.

    A full stop that ends the whole text goes. All other punctuation, operators, signs and emoji
    stay: `10 + 3` is not `10 - 3`, C++ is not C#, and a question mark may be all that differs.
    """
    if not text.isascii():
        text = _INVISIBLE.sub("", _RAISED.sub(r"^\g<0>", text))
        text = unicodedata.normalize("NFKC", text).casefold().translate(_SHAPES)
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    return _FULL_STOP.sub("", _BLANK.sub(" ", text.lower()).strip())


_UNPARTED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}"  # scripts without blanks between words
_WORD = regex.compile(rf"[{_UNPARTED}]|[^\s{_UNPARTED}]+")


def words(text: str) -> list[str]:
    """The words of a text; of Chinese and its like, which do not part them, the characters."""
    return _WORD.findall(text)


def shortened(text: str, most: int) -> str:
    """A text for a message, cut where it has more than `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def comparison_keys(texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    """One 64-bit key a text (BLAKE2b), equal for texts that are equal when normalised.

    A text of which nothing would be left is compared as it stands.
    """
    forms = (_bytes(normalise(text) or text) for text in texts)
    digests = (hashlib.blake2b(form, digest_size=8).digest() for form in forms)
    return np.frombuffer(b"".join(digests), dtype="<u8")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def row_id(query: str, response: str) -> bytes:
    """The content hash of a row: 16 bytes of BLAKE2b over both texts, the boundary included."""
    first = _bytes(query)
    whole = len(first).to_bytes(8, "little") + first + _bytes(response)
    return hashlib.blake2b(whole, digest_size=16).digest()


def row_ids(pairs: Iterable[tuple[str, str]]) -> npt.NDArray[np.uint8]:
    """(n, 16): the content hash of each (query, response)."""
    return np.frombuffer(b"".join(row_id(*pair) for pair in pairs), np.uint8).reshape(-1, 16)
