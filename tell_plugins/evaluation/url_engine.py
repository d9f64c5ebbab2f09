"""Answers from any OpenAI-compatible server: `swift deploy`, vLLM, a hosted model.

The key is read from `$OPENAI_API_KEY` by the client and stored nowhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from tell_plugins.bridge.protocol import Decoding, History, Reply, conversation
from tell_plugins.core.errors import MachineError, UserError, nearest
from tell_plugins.preparation.endpoint import Endpoint, need_key

if TYPE_CHECKING:
    from openai import OpenAI

TRIES = 6  # of one request, in all; the client waits 0.5 to 8 s between them, or as told
_TIMEOUT = 600.0  # seconds for one answer
_SHOWN = 300  # characters of what a server says in an error


class UrlEngine:
    """Answers prompts through a server's chat completions.

    Args:
        url: the address of the API; `/v1` is added to a bare host.
        adapters: names of adapters that are to be tested; one that the server lists is asked for.
        model_name: the model to ask for (default: the first that the server lists).
        system: a system prompt in front of every conversation; "" leaves it to the server.
        workers: requests under way at once.
        timeout: seconds for one answer.
        tries: how often a request is sent before the server counts as broken.

    Raises:
        UserError: for an address, key or model name that the server does not take.
        MachineError: when the server cannot be reached or fails again and again.
    """

    context: int | None = None  # servers do not say; one that is exceeded is reported by the server

    def __init__(
        self,
        url: str,
        adapters: Collection[str] = (),
        *,
        model_name: str | None = None,
        system: str = "",
        workers: int = 16,
        timeout: float = _TIMEOUT,
        tries: int = TRIES,
    ) -> None:
        self._endpoint = Endpoint(base_url=_api(url), model=model_name or "")
        need_key(self._endpoint)
        self.name = f"url {self._endpoint.shown_url}"
        self._client = _client(self._endpoint, timeout, tries)
        self._system = system
        self._tries = tries
        self._workers = workers
        self._adapters = set(adapters)
        self._plain = False  # whether the server refuses what is not in OpenAI's own API
        self._listed = self._list(need=model_name is None)
        self.model_name = model_name or self._listed[0]
        self._named = model_name is not None
        self._model = self.model_name

    def _list(self, *, need: bool) -> list[str]:
        """The names of the models that the server lists; it may list none if one was named."""
        try:
            with self._errors():
                listed = [model.id for model in self._client.models.list()]
        except UserError:
            if need:
                raise
            return []
        if not listed and need:
            raise UserError(
                "the server lists no model",
                where=self._endpoint.shown_url,
                remedy="name one with --model-name",
            )
        return listed

    @contextlib.contextmanager
    def adapter(self, name: str | None) -> Iterator[None]:
        """Ask for one adapter inside the block, or for the model itself for None.

        A server that lists the adapter's name is asked for it. Where it does not, the model of
        `--model-name`, or the only one, is taken to be that adapter: what a server answers with is
        its own affair. Raises UserError when several models are listed and none fits.
        """
        before = self._model
        self._model = self._served(name)
        try:
            yield
        finally:
            self._model = before

    def need_apart(self, names: Sequence[str | None]) -> None:
        """Raise UserError when one served model would answer for two adapters (None: the base)."""
        found: dict[str, str | None] = {}
        for name in names:
            model = self._served(name)
            if model in found:
                raise UserError(
                    f"'{found[model] or 'none'}' and '{name or 'none'}' would both be answered by "
                    f"the model '{model}'",
                    where=self._endpoint.shown_url,
                    allowed=f"one model for each; listed: {', '.join(self._listed) or 'none'}",
                    remedy="serve each under its own name (swift deploy --adapters NAME=DIR), or "
                    "name one of them with --adapter",
                )
            found[model] = name

    def _served(self, name: str | None) -> str:
        if name is None:
            return self.model_name
        if name not in self._adapters:
            raise ValueError(f"adapter {name!r} was not named")
        if name in self._listed:
            return name
        if self._named or len(self._listed) == 1:
            return self.model_name
        match = nearest(name, self._listed)
        raise UserError(
            f"the server lists no model '{name}'",
            where=self._endpoint.shown_url,
            allowed=", ".join(self._listed),
            remedy=f"--model-name {match or self._listed[-1]}, if that is the adapter",
        )

    def prompt_tokens(self, prompts: Sequence[str], history: History = ()) -> list[int]:
        """Characters, to sort by: only the server knows its tokens."""
        before = sum(len(text) for pair in history for text in pair)
        return [before + len(prompt) for prompt in prompts]

    def puts_in_front(self, anchor: str) -> bool:
        """Whether the server puts this anchor before a query by itself, as `swift deploy` does with
        an adapter trained with it: a query then costs the same tokens with and without it, and a
        longer query more (some servers give one number whatever they are asked).

        Such a server answers task prompts rightly, but nothing can be asked without the anchor.
        """
        query = "Hi"
        bare = self._prompt_size(query)
        if bare is None or bare != self._prompt_size(anchor + query):
            return False
        longer = self._prompt_size(query * 50)
        return longer is not None and longer > bare

    def _prompt_size(self, prompt: str) -> int | None:
        with self._errors():
            usage = self._client.chat.completions.create(
                model=self._model,
                messages=cast(Any, conversation(prompt, system=self._system)),
                temperature=0.0,
                max_tokens=1,
            ).usage
        return None if usage is None else usage.prompt_tokens

    def answer(
        self,
        prompts: Sequence[str],
        decoding: Decoding,
        *,
        max_new_tokens: int,
        seed: int,
        history: History = (),
    ) -> list[Reply]:
        """One reply a prompt, in order; the requests run side by side."""
        pool = ThreadPoolExecutor(max_workers=self._workers)
        try:
            futures = [
                pool.submit(
                    self._ask,
                    conversation(prompt, history, self._system),
                    decoding,
                    max_new_tokens,
                    _seed(seed, place),
                )
                for place, prompt in enumerate(prompts)
            ]
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(
        self, messages: list[dict[str, str]], decoding: Decoding, max_new_tokens: int, seed: int
    ) -> Reply:
        import openai

        asked: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "temperature": decoding.temperature,
            "max_tokens": max_new_tokens,
            "seed": seed,
        }
        if decoding.top_p is not None:
            asked["top_p"] = decoding.top_p
        extra: dict[str, Any] = {"repetition_penalty": decoding.repetition_penalty}
        if decoding.top_k is not None:
            extra["top_k"] = decoding.top_k
        with self._errors(decoding):
            if not self._plain:
                try:
                    return _reply(self._client.chat.completions.create(**asked, extra_body=extra))
                except (openai.BadRequestError, openai.UnprocessableEntityError):
                    if not _is_default(decoding):
                        raise
            reply = _reply(self._client.chat.completions.create(**asked))
            self._plain = True  # it takes the request without the extras, so they were the reason
            return reply

    @contextlib.contextmanager
    def _errors(self, decoding: Decoding | None = None) -> Iterator[None]:
        """The client's errors as ours: what the user can mend, and what only time can."""
        import openai

        where = self._endpoint.shown_url
        try:
            yield
        except openai.APITimeoutError:
            raise MachineError(
                f"{where}: no answer in time, {self._tries} times\n"
                "  remedy:  the same command goes on; a smaller --batch-size asks for less at once"
            ) from None
        except openai.APIConnectionError as error:
            raise MachineError(
                f"{where}: no connection ({error.__cause__ or error})\n"
                "  remedy:  check the address and that the server runs; the same command goes on"
            ) from None
        except (openai.RateLimitError, openai.InternalServerError) as error:
            raise MachineError(
                f"{where}: HTTP {error.status_code}, {self._tries} times: {_said(error)}\n"
                "  remedy:  the same command goes on; a smaller --batch-size asks for less at once"
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(
                f"HTTP {error.status_code}: {_said(error)}",
                where=where,
                remedy="export OPENAI_API_KEY=... with a key that this server takes",
            ) from None
        except openai.NotFoundError as error:
            raise UserError(
                f"HTTP 404: {_said(error)}",
                where=where,
                remedy="check the address (it ends in /v1 as a rule) and --model-name",
            ) from None
        except openai.APIStatusError as error:
            limits = decoding is not None and not _is_default(decoding)
            raise UserError(
                f"HTTP {error.status_code}: {_said(error)}",
                where=where,
                remedy="see what the server says"
                + ("; one that takes no top_k answers --decoding greedy only" if limits else ""),
            ) from None
        except (openai.APIError, ValueError, AttributeError, IndexError, TypeError) as error:
            raise UserError(
                f"the reply is no chat completion ({type(error).__name__}: {error})"[:_SHOWN],
                where=where,
                remedy="name the address of an OpenAI-compatible API, http://HOST:PORT/v1",
            ) from None


def _api(url: str) -> str:
    """The address of the API: without what the client appends, with `/v1` after a bare host."""
    url = url.rstrip("/").removesuffix("/chat/completions")
    return url if "/" in url.split("://", 1)[-1] else url + "/v1"


def _client(endpoint: Endpoint, timeout: float, tries: int) -> OpenAI:
    import os

    from openai import OpenAI

    return OpenAI(
        base_url=endpoint.base_url,
        api_key=os.environ.get("OPENAI_API_KEY") or "none",
        timeout=timeout,
        max_retries=tries - 1,  # of 408, 409, 429, 5xx, time-outs and lost connections
    )


def _seed(seed: int, place: int) -> int:
    """A seed for each prompt of a batch, within what servers take."""
    return (seed * 1009 + place) % 2**31


def _is_default(decoding: Decoding) -> bool:
    """Whether leaving away what OpenAI's own API does not know changes nothing."""
    return decoding.top_k is None and decoding.repetition_penalty == 1.0


def _reply(completion: Any) -> Reply:
    choice = completion.choices[0]
    usage = completion.usage
    return Reply(
        text=choice.message.content or "",
        finish_reason=choice.finish_reason or "",
        completion_tokens=0 if usage is None else usage.completion_tokens or 0,
    )


def _said(error: Any) -> str:
    """What the server says, short, on one line and without the key."""
    body = error.body if isinstance(error.body, dict) else {}
    nested = body.get("error")
    body = nested if isinstance(nested, dict) else body
    text = " ".join(str(body.get("message") or error.message).split())
    key = os.environ.get("OPENAI_API_KEY")
    return (text.replace(key, "***") if key else text)[:_SHOWN]
