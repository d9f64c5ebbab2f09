"""One OpenAI-compatible server: its address and key, one answer, many at once, its errors as ours.

The `openai` package sends a request again that found the server busy or the line cut, and waits
in between, as long as it is told or ever longer.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.preparation.download import Unreachable, is_address, shown_url

if TYPE_CHECKING:
    from openai import OpenAI

_SHOWN = 300  # characters of what a server says in an error
_GOES_ON = "the same command goes on where it stopped"
_FEWER = f"{_GOES_ON}; fewer requests at once may be answered sooner"
_T = TypeVar("_T")
_R = TypeVar("_R")


class Refused(UserError):
    """A request that the server does not take, or answers with what is no answer."""


class NoAnswer(MachineError):
    """A request that got no answer, however often it was sent; another may."""


class Answer(NamedTuple):
    """One answer. `tokens_in` and `tokens_out` are None where the server does not say.

    Attributes:
        finish: why the text ends: "stop", "length" (it was cut), ...; "" where it is not said.
        sent_again: how often the request was sent again.
    """

    text: str
    finish: str
    tokens_in: int | None
    tokens_out: int | None
    sent_again: int


@dataclass(frozen=True)
class Server:
    """Where to ask.

    Attributes:
        base_url: the address up to and including `/v1`, see `api_url`.
        key_env: the environment variable that holds the key; it is kept nowhere else.
        timeout: seconds for one answer.
        tries: how often a request is sent before it counts as not answered.
    """

    base_url: str
    model: str = ""
    key_env: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    tries: int = 8

    @property
    def shown_url(self) -> str:
        """The address without user name, password or query."""
        return shown_url(self.base_url)

    @property
    def is_local(self) -> bool:
        """Whether it is this machine or a private network: nothing is bought there."""
        host = urlsplit(self.base_url).hostname or ""
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_private
        except ValueError:
            return "." not in host

    def _key(self) -> str | None:
        return os.environ.get(self.key_env) or None

    def need_key(self) -> None:
        """UserError for what is no address, and for a public one without a key or encryption."""
        url = self.shown_url
        if not is_address(self.base_url):
            remedy = "give the address up to and including /v1, http://... or https://..."
            raise UserError(f"'{url}' is no address", where="the endpoint", remedy=remedy)
        if not self.is_local and self._key() is None:
            remedy = f"export {self.key_env}=... with the key of this server"
            raise UserError(f"no key in ${self.key_env}", where=url, remedy=remedy)
        if not self.is_local and urlsplit(self.base_url).scheme != "https":
            found = "the key would go over the network in the clear"
            raise UserError(found, where=url, remedy="use https://")

    @cached_property
    def client(self) -> OpenAI:
        from openai import OpenAI

        return OpenAI(
            base_url=self.base_url,
            api_key=self._key() or "none",
            timeout=self.timeout,
            max_retries=self.tries - 1,
        )

    def models(self) -> list[str]:
        """The names of the models that the server lists. Raises as `ask` does."""
        with self._faults("name the model"):
            return [model.id for model in self.client.models.list()]

    def ask(self, *, hint: str, **request: Any) -> Answer:
        """One chat completion; `request` is as in OpenAI's API, `model` and `messages` included.

        Raises Refused where the server does not take it (`hint` tells the user what may displease
        it), NoAnswer or Unreachable where it did not answer in all tries, another UserError for a
        wrong key, address or model, another MachineError where only time helps.
        """
        with self._faults(hint):
            raw = self.client.chat.completions.with_raw_response.create(**request)
            answer = raw.parse()
            choice, usage = answer.choices[0], answer.usage
            return Answer(
                choice.message.content or "",
                choice.finish_reason or "",
                None if usage is None else usage.prompt_tokens,
                None if usage is None else usage.completion_tokens or 0,
                raw.retries_taken,
            )

    @contextlib.contextmanager
    def _faults(self, hint: str) -> Iterator[None]:
        """The client's errors as ours; nothing in them repeats the key."""
        import openai

        where = self.shown_url
        try:
            yield
        except openai.APITimeoutError:
            told = f"{where}: no answer within {self.timeout:g} s, {self.tries} times"
            raise NoAnswer(told, remedy=_FEWER) from None
        except openai.APIConnectionError as error:
            raise Unreachable(
                f"{where}: no connection ({error.__cause__ or error})",
                remedy=f"check the address and that the server runs; {_GOES_ON}",
            ) from None
        except openai.APIStatusError as error:
            raise self._status_fault(error, hint) from None
        except (openai.APIError, ValueError, AttributeError, IndexError, TypeError) as error:
            raise Refused(
                f"the reply is no chat completion ({type(error).__name__}: {error})"[:_SHOWN],
                where=where,
                remedy="name the address of an OpenAI-compatible API, http://HOST:PORT/v1",
            ) from None

    def _status_fault(self, error: Any, hint: str) -> UserError | MachineError:
        where, status = self.shown_url, error.status_code
        said = f"HTTP {status}: {self._said(error)}"
        if error.code == "insufficient_quota":
            return MachineError(f"{where}: the quota is used up", remedy=f"raise it; {_GOES_ON}")
        wait = error.response.headers.get("retry-after", "")
        if wait.isdigit() and int(wait) > 60:  # longer than the client waits by itself
            told = f"{where} asks to wait {int(wait):,} s ({said})"
            return MachineError(told, remedy=f"{_GOES_ON}, then")
        if status in (408, 409, 429) or status >= 500:
            return NoAnswer(f"{where}: {said}, {self.tries} times", remedy=_FEWER)
        if status in (401, 402, 403):
            remedy = f"check the key in ${self.key_env}, what it may use, and the account"
            return UserError(said, where=where, remedy=remedy)
        if status == 404:
            remedy = f"check the address (it ends in /v1 as a rule); {hint}"
            return UserError(said, where=where, remedy=remedy)
        return Refused(said, where=where, remedy=f"see what the server says; {hint}")

    def _said(self, error: Any) -> str:
        """What the server says, short, on one line and without the key."""
        body = error.body if isinstance(error.body, dict) else {}
        nested = body.get("error")
        body = nested if isinstance(nested, dict) else body
        text = " ".join(str(body.get("message") or error.message).split())
        key = self._key()
        return (text.replace(key, "***") if key else text)[:_SHOWN]


def api_url(url: str) -> str:
    """The address of the API: without what the client appends, with `/v1` after a bare host."""
    url = url.rstrip("/").removesuffix("/chat/completions")
    return url if "/" in url.split("://", 1)[-1] else url + "/v1"


def side_by_side(work: Callable[[_T], _R], items: Iterable[_T], workers: int) -> Iterator[_R]:
    """`work` done on all items, some at once; the results in order.

    After an error, or Ctrl-C, no further item is begun, and those under way are not waited for.
    """
    with ThreadPool(workers) as pool:
        yield from pool.imap(work, items)
