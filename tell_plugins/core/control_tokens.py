"""Tokens that steer chat models: inside a row, a tokenizer reads them as what they are.

`<|im_end|>` in the middle of a response ends the answer there, in training and when answering.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

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


def any_of(tokens: Iterable[str]) -> re.Pattern[bytes]:
    """A pattern of UTF-8 bytes that finds any of the tokens."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(b"|".join(re.escape(token.encode()) for token in longest_first))


def found_in(text: str, tokens: Iterable[str] = KNOWN) -> str | None:
    """One of the tokens that a text holds, None where it holds none."""
    return next((token for token in tokens if token in text), None)
