"""What an engine is: something that answers prompts. ms-swift's engines and any URL are two."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from tell_plugins.core.errors import unknown


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
    """One answer. `finish_reason` is `stop`, or `length` when the limit cut it."""

    text: str
    finish_reason: str
    completion_tokens: int


History = Sequence[tuple[str, str]]  # (query, response) pairs that stand before every prompt


def conversation(prompt: str, history: History = ()) -> list[dict[str, str]]:
    """The messages of a chat: the pairs of `history`, then the prompt."""
    turns = [text for pair in history for text in pair] + [prompt]
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]


class Engine(Protocol):
    """Answers prompts, one user turn each, after the turns of a history that all share."""

    name: str
    model_name: str
    context: int | None  # tokens of prompt and answer together, None when not known

    def adapter(self, name: str | None) -> AbstractContextManager[None]: ...

    def prompt_tokens(self, prompts: Sequence[str], history: History = ()) -> list[int]: ...

    def answer(
        self,
        prompts: Sequence[str],
        decoding: Decoding,
        *,
        max_new_tokens: int,
        seed: int,
        history: History = (),
    ) -> list[Reply]: ...
