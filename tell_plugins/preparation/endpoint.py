"""An OpenAI-compatible endpoint: one answer, or many questions with checked answers.

The `openai` package sends a request again that found the server busy or the line cut, and waits
in between, as long as it is told or ever longer. Of many questions each answer is checked; one that
fails is asked for again with the reason. A journal holds each good answer as it comes, so a run
that was killed goes on without asking twice.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.progress import track
from tell_plugins.core.state_files import Shape
from tell_plugins.core.tokens import TokenCounter, tokenizer_file
from tell_plugins.preparation.download import Unreachable, is_address, shown_url
from tell_plugins.preparation.journal import Journal

if TYPE_CHECKING:
    from openai import OpenAI

Messages = Sequence[dict[str, str]]
Check = Callable[[str, str], "str | None"]  # (key, answer) -> what is wrong with it, or None

_SHOWN = 300  # characters of what a server says in an error
_LONGEST_WAIT = 60  # seconds that the client waits by itself where a server asks for it
_GIVEN_UP = 3  # questions in a row that got no answer at all: the endpoint is down
_GOES_ON = "the same command goes on where it stopped"
_FEWER = f"{_GOES_ON}; fewer requests at once may be answered sooner"
_T = TypeVar("_T")
_R = TypeVar("_R")
_HINT = "check --model and --temperature (or 'none')"


class Refused(UserError):
    """A request that the server does not take, or answers with what is no answer."""


class Completion(NamedTuple):
    """One answer. `tokens_in` and `tokens_out` are None where the server does not say.

    Attributes:
        finish: why the text ends: "stop", "length" (it was cut), ...; "" where it is not said.
    """

    text: str
    finish: str
    tokens_in: int | None
    tokens_out: int | None


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
        url = self.shown_url
        if not is_address(self.base_url):
            remedy = "give the address up to and including /v1, http://... or https://..."
            raise UserError(f"'{url}' is no address", where="the endpoint", remedy=remedy)
        if not self.is_local and self._key is None:
            remedy = f"export {self.key_env}=... with the key of this server"
            raise UserError(f"no key in ${self.key_env}", where=url, remedy=remedy)
        if not self.is_local and urlsplit(self.base_url).scheme != "https":
            found = "the key would go over the network in the clear"
            raise UserError(found, where=url, remedy="use https://")

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

    def ask(self, *, hint: str, **request: Any) -> Completion:
        """One chat completion; `request` is as in OpenAI's API, `model` and `messages` included.

        Raises Refused where the server does not take it (`hint` tells the user what may displease
        it), Unreachable where it did not answer in all tries, another UserError for a
        wrong key, address or model, another MachineError where only time helps.
        """
        with self._faults(hint):
            answer = self.client.chat.completions.create(**request)
            choice, usage = answer.choices[0], answer.usage
            return Completion(
                choice.message.content or "",
                choice.finish_reason or "",
                None if usage is None else usage.prompt_tokens,
                None if usage is None else usage.completion_tokens or 0,
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
            raise Unreachable(told, remedy=_FEWER) from None
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
        if wait.isdigit() and int(wait) > _LONGEST_WAIT:
            told = f"{where} asks to wait {int(wait):,} s ({said})"
            return MachineError(told, remedy=f"{_GOES_ON}, then")
        if status in (408, 409, 429) or status >= 500:
            return Unreachable(f"{where}: {said}, {self.tries} times", remedy=_FEWER)
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


@dataclass(frozen=True)
class Asking(Endpoint):
    """Where and how to ask many questions.

    Attributes:
        concurrency: requests at once.
        attempts: answers that are asked for at most, for one question.
        temperature: None leaves it to the endpoint.
        max_tokens: of the longest answer.
    """

    model: str = ""
    concurrency: int = 8
    attempts: int = 3
    temperature: float | None = 0.0
    max_tokens: int = 600


class AskedRecord(Shape):
    """A record of the journal: an answer that passed the check."""

    key: str
    text: str | None = None


class Outcome(NamedTuple):
    """Answers that passed the check and, for the others, the last reason why not."""

    answers: dict[str, str]
    failures: dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `asking_of` reads."""
    add = parser.add_argument
    add("--base-url", metavar="URL", help="an OpenAI-compatible endpoint, e.g. http://host:8000/v1")
    add("--model", metavar="NAME", help="the endpoint's model")
    text = "the environment variable that holds the key (default: OPENAI_API_KEY)"
    add("--key-env", metavar="NAME", default="OPENAI_API_KEY", help=text)
    add("--concurrency", metavar="N", type=int, default=8, help="requests at once (default: 8)")
    text = "answers asked for at most for one row (default: 3)"
    add("--attempts", metavar="N", type=int, default=3, help=text)
    text = "seconds an answer (default: 120)"
    add("--timeout", metavar="S", type=float, default=120.0, help=text)
    text = "sampling temperature, or 'none' to leave it to the endpoint (default: 0)"
    add("--temperature", metavar="T", type=_temperature, default=0.0, help=text)
    text = "longest answer; a model that thinks first needs more (default: 600)"
    add("--max-tokens", metavar="N", type=int, default=600, help=text)
    add("--yes", action="store_true", help="ask a public endpoint, whatever it costs")


def _temperature(text: str) -> float | None:
    return None if text == "none" else float(text)


def asking_of(args: argparse.Namespace) -> Asking:
    """What `args` say. Raises UserError for a missing or impossible value, or a key that is
    missing."""
    for flag, value in (("--base-url", args.base_url), ("--model", args.model)):
        if not value:
            remedy = "--base-url URL --model NAME of an OpenAI-compatible endpoint"
            raise UserError(f"{flag} is missing", where="command line", remedy=remedy)
    for name in ("concurrency", "attempts", "timeout", "max_tokens"):
        if getattr(args, name) <= 0:
            where = "--" + name.replace("_", "-")
            raise UserError("too small", where=where, allowed="more than 0", remedy="raise it")
    given = {part.name: getattr(args, part.name) for part in fields(Asking) if part.name in args}
    asking = Asking(**{**given, "base_url": api_url(args.base_url)})
    asking.need_key()
    return asking


def need_consent(
    questions: Collection[Messages], asking: Asking, answer_tokens: int, yes: bool
) -> None:
    """Print what asking `questions` once will take; UserError when that needs a --yes.

    A local endpoint needs none.
    """
    texts = [message["content"] for messages in questions for message in messages]
    path = tokenizer_file()
    counted = int(TokenCounter(path).count(texts).sum()) if path else sum(map(len, texts)) // 4
    text = (
        f"{len(questions):,} rows to ask {asking.model} at {asking.shown_url}: about "
        f"{counted:,} tokens asked, {answer_tokens * len(questions):,} answered"
    )
    if questions and not asking.is_local and not yes:
        raise UserError(
            text,
            where="cost",
            allowed="a local endpoint without asking",
            remedy="add --yes to go on (rows asked again add to it); --rows 20 tries it small",
        )
    print(text, flush=True)


def ask_all(
    questions: Mapping[str, Messages],
    check: Check,
    asking: Asking,
    journal: Journal,
    answer_tokens: int,
    yes: bool,
) -> Outcome:
    """Ask what the journal does not answer yet, and return all answers; `questions` by the key that
    names each in the journal for good.

    Raises UserError when the endpoint refuses key, model or request, or needs a --yes,
    MachineError when it is out of reach or out of quota. The journal keeps what was answered.
    """
    known = {record["key"]: record["text"] for record in journal.records if record.get("text")}
    answers = {key: known[key] for key in questions if key in known and not check(key, known[key])}
    todo = {key: asked for key, asked in questions.items() if key not in answers}
    if answers:
        print(f"{len(answers):,} rows are answered already")
    need_consent(todo.values(), asking, answer_tokens, yes)
    failures: dict[str, str] = {}
    unanswered = 0  # requests in a row
    with track(len(todo), f"asking {asking.model}", "rows") as bar:
        work = partial(_asked, check, asking)
        for result in side_by_side(work, todo.items(), asking.concurrency, in_order=False):
            bar.update(1)
            if result.text is not None:
                journal.append({"key": result.key, "text": result.text})
                answers[result.key] = result.text
            else:
                failures[result.key] = result.problem
            alone = isinstance(result.fault, Refused) and answers  # other rows were taken
            unanswered = unanswered + 1 if result.fault and not alone else 0
            none_came = not answers and len(failures) == len(todo)
            if result.fault and (unanswered == _GIVEN_UP or none_came):
                raise _stopped(result.fault, len(answers), journal)
    return Outcome(answers, failures)


class _Result(NamedTuple):
    """What became of one question.

    Attributes:
        text: an answer that passed the check, None where there is none.
        problem: then, the last reason why not.
        fault: then, the error where the last request got no answer.
    """

    key: str
    text: str | None
    problem: str = ""
    fault: Refused | Unreachable | None = None


def _asked(check: Check, asking: Asking, question: tuple[str, Messages]) -> _Result:
    """Ask until the answer is right, or the attempts are used up, or none comes at all."""
    key, first = question
    messages, problem = list(first), ""
    request: dict[str, Any] = {"model": asking.model, "max_tokens": asking.max_tokens}
    if asking.temperature is not None:
        request["temperature"] = asking.temperature
    for _ in range(asking.attempts):
        try:
            answer = asking.ask(hint=_HINT, messages=messages, **request)
        except (Refused, Unreachable) as error:
            return _Result(key, None, str(error).splitlines()[0], error)
        text = answer.text.encode("utf-8", "replace").decode()  # half a character cannot go back
        problem = check(key, text) or ""
        if not problem:
            return _Result(key, text)
        again = f"That cannot be used: {problem}. Answer again, as asked above."
        messages = [
            *first,
            {"role": "assistant", "content": text},
            {"role": "user", "content": again},
        ]
    return _Result(key, None, problem)


def _stopped(
    error: Refused | Unreachable, answered: int, journal: Journal
) -> UserError | MachineError:
    """The error that ends the run: the request is wrong, or the endpoint is down."""
    if isinstance(error, UserError):
        return error
    kept = f"{answered:,} answers are kept in {paths.shown(journal.path)}"
    return MachineError(kept + "\n" + str(error))
