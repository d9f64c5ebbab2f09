"""What an engine is: something that answers prompts. ms-swift's engines and any URL are two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, unknown
from tell_plugins.core.text import turns_of

# what of a recipe says which model answers, and through which template
MODEL_KEYS = (
    "model", "model_type", "model_revision", "model_kwargs", "template", "template_backend",
    "use_chat_template", "enable_thinking", "response_prefix", "agent_template", "system", "use_hf",
    "attn_impl", "rope_scaling", "max_model_len", "new_special_tokens", "quant_method",
    "quant_bits", "bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
    "bnb_4bit_quant_storage", "external_plugins", "torch_dtype", "device_map",
)  # fmt: skip
_OF_THE_MACHINE = ("torch_dtype", "device_map")


def model_sha256(values: Mapping[str, Any]) -> str:
    """One hash over a recipe's model keys, so that answers of another system prompt are told apart.

    Without those that a CPU overrules: an engine's name says the type of number that it computes
    with, and where a model lies does not change what it answers.
    """
    keys = [key for key in MODEL_KEYS if key not in _OF_THE_MACHINE]
    chosen = {key: values[key] for key in keys if values.get(key) is not None}
    text = json.dumps(chosen, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def system_text(value: Any) -> str | None:
    """A system prompt as ms-swift reads it: a `.txt` file by its content, `\\n` as a line end."""
    if value is None or not str(value).endswith(".txt"):
        return None if value is None else str(value).replace("\\n", "\n")
    file = paths.user_path(value)
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = f"no system prompt at '{value}'"
    raise UserError(found, where="system", remedy="name a file, or the text")


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen."""

    name: str
    temperature: float
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0


DECODINGS = {
    "greedy": Decoding("greedy", 0.0),
    # the paper's, Appendix A.1
    "paper": Decoding("paper", 0.3, top_k=20, top_p=0.7, repetition_penalty=1.05),
}


def decoding(name: str) -> Decoding:
    """The decoding of that name. Raises UserError for another."""
    if name not in DECODINGS:
        raise unknown("decoding", name, DECODINGS, "--decoding")
    return DECODINGS[name]


@dataclass(frozen=True)
class Reply:
    """One answer. `finish_reason` is `stop`, or `length` when the limit cut it; `prompt_tokens` is
    None where the engine has counted them before."""

    text: str
    finish_reason: str
    completion_tokens: int
    prompt_tokens: int | None = None


History = Sequence[tuple[str, str]]  # (query, response) pairs that stand before every prompt


class Ask(NamedTuple):
    """How prompts are answered: after which turns, by up to how many tokens, and how these are
    chosen."""

    decoding: Decoding
    max_new_tokens: int
    seed: int
    history: History = ()


def conversation(prompt: str, history: History = (), system: str = "") -> list[dict[str, str]]:
    """The messages of a chat: the system prompt if any, then the turns of `history` and prompt."""
    turns = [text for pair in history for text in pair] + turns_of(prompt)
    roles = ("user", "assistant")
    front = [{"role": "system", "content": system}] if system else []
    return front + [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]


class Engine(Protocol):
    """Answers prompts, one user turn each, after the turns of a history that all share."""

    name: str
    model_name: str
    context: int | None  # tokens of prompt and answer together, None when not known

    def adapter(self, name: str | None) -> AbstractContextManager[None]: ...

    def prompt_tokens(self, prompts: Sequence[str], history: History = ()) -> list[int]: ...

    def answer(self, prompts: Sequence[str], ask: Ask) -> list[Reply]: ...
