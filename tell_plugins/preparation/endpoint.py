"""An OpenAI-compatible endpoint: one answer, or many questions with checked answers.

The `openai` package sends a request again that found the server busy or the line cut, and waits
in between, as long as it is told or ever longer. Of many questions each answer is checked; one that
fails is asked for again with the reason. Each good answer is kept in a file as it comes, so a run
that was killed goes on without asking twice.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import HttpUrl, TypeAdapter

from tell_plugins.bridge.protocol import Reply
from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError, at_least
from tell_plugins.core.progress import track
from tell_plugins.core.state_files import cached_json, write_json
from tell_plugins.preparation.download import Unreachable, shown_url

if TYPE_CHECKING:
    from openai import OpenAI

Messages = Sequence[dict[str, str]]
Check = Callable[[str, str], "str | None"]  # (key, answer) -> what is wrong with it, or None

_SHOWN = 300  # characters of what a server says in an error
_GIVEN_UP = 3  # questions in a row that got no answer at all: the endpoint is down
_LATER = "check the address and that the server runs; the same command goes on where it stopped, "
_LATER += "and fewer requests at once may be answered sooner"
_T = TypeVar("_T")
_R = TypeVar("_R")
_HINT = "check --model and --temperature (or 'none')"


class Refused(UserError):
    """A request that the server does not take, or answers with what is no answer."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask.

    Attributes:
        base_url: the address up to and including `/v1`, see `api_url`.
        key_env: the environment variable that holds the key; it is kept nowhere else.
        timeout: seconds for one answer.
        tries: how often a request is sent before it counts as not answered.
    """

    base_url: str
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
        try:
            return ipaddress.ip_address(host).is_private
        except ValueError:
            return "." not in host

    def need_key(self) -> None:
        """UserError for what is no address, and for a public one without a key or encryption."""
        found = remedy = None
        try:
            scheme = TypeAdapter(HttpUrl).validate_python(self.base_url).scheme
        except ValueError:
            scheme, found = "", "no address"
            remedy = "give it up to and including /v1: http://HOST:PORT/v1"
        if scheme and not self.is_local and self._key is None:
            found = f"no key in ${self.key_env}"
            remedy = f"export {self.key_env}=... with the key of this server"
        elif scheme == "http" and not self.is_local:
            found, remedy = "the key would go over the network in the clear", "use https://"
        if found:
            raise UserError(found, where=self.shown_url, remedy=remedy)

    @property
    def _key(self) -> str | None:
        return os.environ.get(self.key_env) or None

    @cached_property
    def client(self) -> OpenAI:
        from openai import OpenAI

        return OpenAI(
            base_url=self.base_url,
            api_key=self._key or "none",
            timeout=self.timeout,
            max_retries=self.tries - 1,
        )

    def models(self) -> list[str]:
        """The names of the models that the server lists. Raises as `ask` does."""
        with self._faults("name the model"):
            return [model.id for model in self.client.models.list()]

    def ask(self, *, hint: str, **request: Any) -> Reply:
        """One chat completion; `request` is as in OpenAI's API, `model` and `messages` included.
        Where the server does not say, its tokens are 0, the prompt's None.

        Raises Refused where the server does not take it (`hint` tells the user what may displease
        it), Unreachable where it did not answer in all tries, another UserError for a
        wrong key, address or model, another MachineError where only time helps.
        """
        with self._faults(hint):
            answer = self.client.chat.completions.create(**request)
            choice, usage = answer.choices[0], answer.usage
            return Reply(
                choice.message.content or "",
                choice.finish_reason or "",
                usage.completion_tokens or 0 if usage else 0,
                usage.prompt_tokens if usage else None,
            )

    @contextlib.contextmanager
    def _faults(self, hint: str) -> Iterator[None]:
        """The client's errors as ours; nothing in them repeats the key."""
        import openai

        where = self.shown_url
        try:
            yield
        except openai.APIConnectionError as error:
            told = f"{where}: no connection, or no answer within {self.timeout:g} s, "
            told += f"{self.tries} times ({error.__cause__ or error})"
            raise Unreachable(told, remedy=_LATER) from None
        except openai.APIStatusError as error:
            raise self._status_fault(error.status_code, self._said(error), hint) from None
        except (openai.APIError, ValueError, AttributeError, IndexError, TypeError) as error:
            raise Refused(
                f"the reply is no chat completion ({type(error).__name__}: {error})"[:_SHOWN],
                where=where,
                remedy="name the address of an OpenAI-compatible API, http://HOST:PORT/v1",
            ) from None

    def _status_fault(self, status: int, said: str, hint: str) -> UserError | MachineError:
        said = f"HTTP {status}: {said}"
        if status in (408, 409, 429) or status >= 500:
            return Unreachable(f"{self.shown_url}: {said}, {self.tries} times", remedy=_LATER)
        if status in (401, 402, 403):  # no other request will do better
            remedy = f"check the key in ${self.key_env}, what it may use, and the account"
            return UserError(said, where=self.shown_url, remedy=remedy)
        remedy = f"see what the server says; check the address (it ends in /v1 as a rule); {hint}"
        return Refused(said, where=self.shown_url, remedy=remedy)

    def _said(self, error: Any) -> str:
        """What the server says, short, on one line and without the key."""
        body = error.body if isinstance(error.body, dict) else {}
        text = " ".join(str(body.get("message") or error.message).split())
        return (text.replace(self._key, "***") if self._key else text)[:_SHOWN]


def api_url(url: str) -> str:
    """The address of the API: without what the client appends, with `/v1` after a bare host."""
    url = url.rstrip("/").removesuffix("/chat/completions")
    return url if "/" in url.split("://", 1)[-1] else url + "/v1"


def side_by_side(
    work: Callable[[_T], _R], items: Iterable[_T], workers: int, *, in_order: bool = True
) -> Iterator[_R]:
    """`work` done on all items, some at once; the results in order, or as they come.

    After an error, or Ctrl-C, no further item is begun, and those under way are not waited for.
    """
    with ThreadPool(workers) as pool:
        yield from (pool.imap if in_order else pool.imap_unordered)(work, items)


# ------------------------------------------------------------------------- many questions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `endpoint_of` and `ask_all` read."""
    add = parser.add_argument
    add("--base-url", metavar="URL", help="an OpenAI-compatible endpoint, e.g. http://host:8000/v1")
    add("--model", metavar="NAME", help="the endpoint's model")
    for flag, metavar, usual, kind, text in (
        ("--concurrency", "N", 8, at_least(1), "requests at once"),
        ("--attempts", "N", 3, at_least(1), "answers asked for at most for one row"),
        ("--timeout", "S", 120, at_least(1), "seconds an answer"),
        ("--max-tokens", "N", 600, at_least(1), "longest answer; a model that thinks needs more"),
        ("--key-env", "NAME", Endpoint.key_env, str, "the environment variable with the key"),
        ("--temperature", "T", 0.0, _temperature, "of sampling; none leaves it to the endpoint"),
    ):
        text += " (default: %(default)s)"
        add(flag, metavar=metavar, type=kind, default=usual, help=text)
    add("--yes", action="store_true", help="ask a public endpoint, whatever it costs")


def _temperature(text: str) -> float | None:
    return None if text == "none" else float(text)


def endpoint_of(args: argparse.Namespace) -> Endpoint:
    """Raises UserError where address, model or key is missing."""
    if not (args.base_url and args.model):
        raise UserError(
            f"{'--model' if args.base_url else '--base-url'} is missing",
            where="command line",
            remedy="--base-url URL --model NAME of an OpenAI-compatible endpoint",
        )
    endpoint = Endpoint(api_url(args.base_url), args.key_env, args.timeout)
    endpoint.need_key()
    return endpoint


def need_consent(
    questions: Collection[Messages],
    endpoint: Endpoint,
    args: argparse.Namespace,
    answer_tokens: int,
) -> None:
    """Print what asking `questions` once will take; UserError when that needs a --yes.

    A local endpoint needs none.
    """
    counted = sum(len(each["content"]) for messages in questions for each in messages) // 4
    text = (
        f"{len(questions):,} rows to ask {args.model} at {endpoint.shown_url}: about "
        f"{counted:,} tokens asked, {answer_tokens * len(questions):,} answered"
    )
    if questions and not endpoint.is_local and not args.yes:
        remedy = "add --yes to go on (rows asked again add to it); --rows 20 tries it small"
        raise UserError(text, where="cost", remedy=remedy)
    print(text, flush=True)


def ask_all(
    questions: Mapping[str, Messages],
    check: Check,
    endpoint: Endpoint,
    args: argparse.Namespace,
    kept: Path,
    answer_tokens: int,
) -> tuple[dict[str, str], dict[str, str]]:
    """Ask what the files in `kept` do not answer yet. Returns the answers that passed the check
    and, for the other questions, the last reason why not; by the key that names each for good.

    Raises UserError when the endpoint refuses key, model or request, or needs a --yes,
    MachineError when it is out of reach or out of quota. What was answered is kept.
    """
    known = {key: cached_json(kept / f"{key}.json", dict[str, str]) or {} for key in questions}
    texts = {key: file["text"] for key, file in known.items() if "text" in file}
    answers = {key: text for key, text in texts.items() if not check(key, text)}
    todo = {key: asked for key, asked in questions.items() if key not in answers}
    if answers:
        print(f"{len(answers):,} rows are answered already")
    need_consent(todo.values(), endpoint, args, answer_tokens)
    failures: dict[str, str] = {}
    unanswered = 0  # requests in a row
    with track(len(todo), f"asking {args.model}", "rows") as bar:
        work = partial(_asked, check, endpoint, args)
        for key, text, problem in side_by_side(
            work, todo.items(), args.concurrency, in_order=False
        ):
            bar.update(1)
            if problem is None:
                write_json(kept / f"{key}.json", {"text": text})
                answers[key], unanswered = text, 0
                continue
            failures[key] = str(problem).splitlines()[0]
            # a refusal is the row's own where other rows were taken
            is_down = isinstance(problem, Unreachable) or not (answers or isinstance(problem, str))
            unanswered = unanswered + 1 if is_down else 0
            if isinstance(problem, Exception) and unanswered == min(_GIVEN_UP, len(todo)):
                print(f"{len(answers):,} answers are kept in {paths.shown(kept)}")
                raise problem
    return answers, failures


def _asked(
    check: Check, endpoint: Endpoint, args: argparse.Namespace, question: tuple[str, Messages]
) -> tuple[str, str, str | Refused | Unreachable | None]:
    """The key, the last answer, and what is wrong with it after all attempts, if anything."""
    key, first = question
    messages, text, problem = list(first), "", None
    request: dict[str, Any] = {"model": args.model, "max_tokens": args.max_tokens}
    if args.temperature is not None:
        request["temperature"] = args.temperature
    for _ in range(args.attempts):
        try:
            answer = endpoint.ask(hint=_HINT, messages=messages, **request)
        except (Refused, Unreachable) as error:
            return key, "", error
        text = answer.text.encode("utf-8", "replace").decode()  # half a character cannot go back
        problem = check(key, text)
        if not problem:
            return key, text, None
        again = f"That cannot be used: {problem}. Answer again, as asked above."
        said = {"role": "assistant", "content": text}
        messages = [*first, said, {"role": "user", "content": again}]
    return key, text, problem
