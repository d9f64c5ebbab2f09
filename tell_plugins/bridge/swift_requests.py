"""Prompts and decoding as ms-swift's engines take them, and their answers as ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tell_plugins.bridge.protocol import Decoding, History, Reply, conversation


def token_counts(template: Any, prompts: Sequence[str], history: History) -> list[int]:
    """The number of tokens of each prompt, with its history, as the template encodes it."""
    return [
        len(template.encode({"messages": conversation(prompt, history)})["input_ids"])
        for prompt in prompts
    ]


def infer_requests(prompts: Sequence[str], history: History) -> list[Any]:
    """An InferRequest a prompt."""
    from swift.infer_engine import InferRequest

    return [InferRequest(messages=conversation(prompt, history)) for prompt in prompts]


def request_config(decoding: Decoding, max_new_tokens: int, **more: Any) -> Any:
    """The RequestConfig of a decoding; `more` are further fields of it."""
    from swift.infer_engine import RequestConfig

    return RequestConfig(
        max_tokens=max_new_tokens,
        temperature=decoding.temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        repetition_penalty=decoding.repetition_penalty,
        **more,
    )


def as_reply(response: Any) -> Reply:
    """What an engine of ms-swift answered to one request."""
    choice = response.choices[0]
    return Reply(
        text=choice.message.content,
        finish_reason=choice.finish_reason or "",
        completion_tokens=response.usage.completion_tokens,
    )
