"""Asking an OpenAI-compatible endpoint many questions: bounded, patient, resumable, accounted for.

Every answer is checked; one that fails is asked again with the reason. A journal holds each answer
as it comes, so a run that was killed goes on without asking twice.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.files import Shape
from tell_plugins.core.progress import track
from tell_plugins.core.tokens import TokenCounter, tokenizer_file
from tell_plugins.preparation.journal import Journal
from tell_plugins.preparation.transfer import is_address, shown_url

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Message = dict[str, str]
Check = Callable[[str, str], str | None]  # (key, answer) -> what is wrong with it, or None

SPEND_FREELY = 1.0  # an estimated cost up to this needs no --yes
TRIES = 8  # of one request, when the server fails or the line is cut
RATE_LIMIT_TRIES = 40
LONGEST_WAIT = 3600.0  # seconds; an endpoint that asks for more is left for later
_GIVEN_UP = 3  # requests in a row that got no answer at all: the endpoint is down
_CHARS_PER_TOKEN = 4
_FATAL = (401, 402, 403, 404)


@dataclass(frozen=True)
class Question:
    """What is asked. `key` names it in the journal for good."""

    key: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask. Prices are per million tokens, in any currency.

    Attributes:
        attempts: answers asked for at most, for one question, over all runs.
        timeout: seconds for one answer.
        first_wait: seconds before a failed request is sent again; doubles each time.
    """

    base_url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    attempts: int = 3
    timeout: float = 120.0
    temperature: float | None = 0.0
    max_tokens: int = 600
    price_in: float | None = None
    price_out: float | None = None
    first_wait: float = 1.0

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


class AskedRecord(Shape):
    """A record of the journal: one request and what came of it."""

    key: str
    text: str | None = None
    problem: str | None = None
    attempt: bool = True


@dataclass
class Outcome:
    """Answers that passed the check and, for the others, the last reason why not."""

    answers: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    ledger: dict[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------------- command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `endpoint_of` reads."""
    add = parser.add_argument
    add("--base-url", metavar="URL", help="an OpenAI-compatible endpoint, e.g. http://host:8000/v1")
    add("--model", metavar="NAME", help="the endpoint's model")
    add(
        "--key-env",
        metavar="NAME",
        default="OPENAI_API_KEY",
        help="the environment variable that holds the key (default: OPENAI_API_KEY)",
    )
    add("--concurrency", metavar="N", type=int, default=8, help="requests at once (default: 8)")
    add(
        "--attempts",
        metavar="N",
        type=int,
        default=3,
        help="answers asked for at most for one row (default: 3)",
    )
    add(
        "--timeout", metavar="S", type=float, default=120.0, help="seconds an answer (default: 120)"
    )
    add(
        "--temperature",
        metavar="T",
        type=_temperature,
        default=0.0,
        help="sampling temperature, or 'none' to leave it to the endpoint (default: 0)",
    )
    add(
        "--max-tokens",
        metavar="N",
        type=int,
        default=600,
        help="longest answer; a model that thinks first needs more (default: 600)",
    )
    add("--price-in", metavar="P", type=float, help="price of a million tokens asked")
    add("--price-out", metavar="P", type=float, help="price of a million tokens answered")
    add("--yes", action="store_true", help="spend what the estimate says")


def _temperature(text: str) -> float | None:
    return None if text == "none" else float(text)


def endpoint_of(args: argparse.Namespace) -> Endpoint:
    """The endpoint that `args` name. Raises UserError for a missing or impossible value."""
    for flag, value in (("--base-url", args.base_url), ("--model", args.model)):
        if not value:
            raise UserError(
                f"{flag} is missing",
                where="command line",
                remedy="--base-url URL --model NAME of an OpenAI-compatible endpoint",
            )
    smallest = {"concurrency": 1, "attempts": 1, "timeout": 0.001, "max_tokens": 1}
    for name, least in smallest.items():
        if getattr(args, name) < least:
            raise UserError(
                f"{getattr(args, name)} is too small",
                where="--" + name.replace("_", "-"),
                allowed="more than 0",
                remedy="raise it",
            )
    if (args.price_in is None) != (args.price_out is None):
        raise UserError(
            "one price without the other",
            where="--price-in, --price-out",
            remedy="give both, per million tokens",
        )
    return Endpoint(
        base_url=args.base_url,
        model=args.model,
        key_env=args.key_env,
        concurrency=args.concurrency,
        attempts=args.attempts,
        timeout=args.timeout,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        price_in=args.price_in,
        price_out=args.price_out,
    )


# ------------------------------------------------------------------------- what it will cost


def need_consent(
    questions: Sequence[Question], endpoint: Endpoint, answer_tokens: int, yes: bool
) -> None:
    """Print what asking `questions` once will take; UserError when that needs a --yes.

    A local endpoint and an estimate of at most `SPEND_FREELY` need none.
    """
    if not questions:
        return
    tokens_in, how = _count([m["content"] for q in questions for m in q.messages])
    tokens_out = answer_tokens * len(questions)
    cost = _cost(endpoint, tokens_in, tokens_out)
    shown = "not known (no --price-in, --price-out)" if cost is None else f"{cost:.2f}"
    text = (
        f"{len(questions):,} rows to ask {endpoint.model} at {endpoint.shown_url}: "
        f"about {tokens_in:,} tokens asked ({how}), {tokens_out:,} answered; cost: {shown}"
    )
    free = endpoint.is_local or (cost is not None and cost <= SPEND_FREELY)
    if not free and not yes:
        raise UserError(
            text,
            where="cost",
            allowed=f"an estimate up to {SPEND_FREELY:.2f}, or a local endpoint, without asking",
            remedy="add --yes to go on (rows asked again add to it); --rows 20 tries it small",
        )
    print(text, flush=True)


def _count(texts: list[str]) -> tuple[int, str]:
    path = tokenizer_file()
    if path is None:
        return sum(map(len, texts)) // _CHARS_PER_TOKEN, "characters / 4"
    return int(TokenCounter(path).count(texts).sum()), "Llama-2 tokenizer"


def _cost(endpoint: Endpoint, tokens_in: int, tokens_out: int) -> float | None:
    if endpoint.price_in is None or endpoint.price_out is None:
        return None
    return (tokens_in * endpoint.price_in + tokens_out * endpoint.price_out) / 1e6


# ------------------------------------------------------------------------- asking


def ask(
    questions: Sequence[Question], check: Check, endpoint: Endpoint, journal: Journal
) -> Outcome:
    """Ask what the journal does not answer yet, and return all answers.

    Raises UserError when the endpoint refuses key, model or request, MachineError when it is out
    of reach or out of quota. The journal keeps what was answered before either.
    """
    asker = _Asker(check, endpoint, journal)
    todo = [question for question in questions if asker.is_open(question.key)]
    if todo:
        asyncio.run(asker.run(todo))
    outcome = Outcome(ledger=ledger(journal.records, endpoint))
    for question in questions:
        good = asker.answers.get(question.key)
        if good is not None:
            outcome.answers[question.key] = good
        else:
            outcome.failures[question.key] = asker.reasons.get(question.key, "no answer")
    return outcome


def open_questions(
    questions: Sequence[Question], check: Check, endpoint: Endpoint, journal: Journal
) -> list[Question]:
    """The questions that `ask` would send."""
    asker = _Asker(check, endpoint, journal)
    return [question for question in questions if asker.is_open(question.key)]


def ledger(records: Sequence[dict[str, Any]], endpoint: Endpoint) -> dict[str, Any]:
    """What all runs of a journal have taken so far."""
    repeats: Counter[str] = Counter()
    for record in records:
        repeats.update(record.get("repeats", {}))
    tokens_in = sum(record.get("tokens_in", 0) for record in records)
    tokens_out = sum(record.get("tokens_out", 0) for record in records)
    answered = [record for record in records if record.get("text") is not None]
    cost = _cost(endpoint, tokens_in, tokens_out)
    return {
        "model": endpoint.model,
        "requests": len(records) + sum(repeats.values()),
        "answers": len(answered),
        "refused_by_check": sum(record.get("problem") is not None for record in answered),
        "sent_again_after": dict(sorted(repeats.items())),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "tokens_estimated_for": sum(bool(record.get("estimated")) for record in answered),
        "price_in": endpoint.price_in,
        "price_out": endpoint.price_out,
        "cost": None if cost is None else round(cost, 4),
    }


class _NoAnswer(Exception):
    """A request that got no answer at all, though it was sent again."""


class _Asker:
    """The state of one run: what is answered, and until when nothing may be sent."""

    def __init__(self, check: Check, endpoint: Endpoint, journal: Journal) -> None:
        self.check, self.endpoint, self.journal = check, endpoint, journal
        self.answers: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self._attempts: Counter[str] = Counter()
        self._last: dict[str, tuple[str, str]] = {}  # key -> refused answer, reason
        self._not_before = 0.0
        self._reached = False
        self._given_up = 0
        for record in journal.records:
            self._note(record)

    def is_open(self, key: str) -> bool:
        return key not in self.answers and self._attempts[key] < self.endpoint.attempts

    def _note(self, record: dict[str, Any]) -> None:
        key, text, problem = record["key"], record.get("text"), record.get("problem")
        if text is not None:
            problem = self.check(key, text)
        if record.get("attempt", True):
            self._attempts[key] += 1
        if problem is None and text is not None:
            self.answers[key] = text
            return
        self.reasons[key] = str(problem)
        if text is not None:
            self._last[key] = text, str(problem)

    async def run(self, questions: Sequence[Question]) -> None:
        queue: asyncio.Queue[Question] = asyncio.Queue()
        for question in questions:
            queue.put_nowait(question)
        with track(len(questions), f"asking {self.endpoint.model}", "rows") as bar:
            async with self._client() as client:
                workers = [
                    asyncio.create_task(self._work(client, queue, bar))
                    for _ in range(min(self.endpoint.concurrency, len(questions)))
                ]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)

    def _client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        return AsyncOpenAI(
            api_key=_key(self.endpoint) or "none",
            base_url=self.endpoint.base_url,
            timeout=self.endpoint.timeout,
            max_retries=0,  # sent again here, where it is counted and all workers wait
        )

    async def _work(self, client: AsyncOpenAI, queue: asyncio.Queue[Question], bar: Any) -> None:
        while not queue.empty():
            question = queue.get_nowait()
            while self.is_open(question.key):
                repeats: Counter[str] = Counter()
                try:
                    record = await self._request(client, question, repeats)
                except _NoAnswer as error:
                    self._record(question.key, repeats, problem=str(error), attempt=False)
                    self._given_up += 1
                    if self._given_up >= _GIVEN_UP:
                        raise MachineError(
                            f"{self.endpoint.shown_url} does not answer: {error}\n"
                            f"  remedy:  the same command goes on; {len(self.answers):,} answers "
                            f"are kept in {paths.shown(self.journal.path)}"
                        ) from None
                    break
                self._given_up = 0
                self._record(question.key, repeats, **record)
            bar.update(1)

    def _record(self, key: str, repeats: Counter[str], **values: Any) -> None:
        record = {"key": key, **values, "repeats": dict(repeats)}
        if record.get("text") is not None:
            record["problem"] = self.check(key, record["text"])
        self.journal.append(record)
        self._note(record)

    async def _request(
        self, client: AsyncOpenAI, question: Question, repeats: Counter[str]
    ) -> dict[str, Any]:
        """Send one request until it is answered; the answer as values of a record."""
        import openai

        while True:
            await self._until_allowed()
            started = time.monotonic()
            try:
                answer = await asyncio.wait_for(
                    self._send(client, question), self.endpoint.timeout + 1
                )
                self._reached = True
                return {**_read(answer, question), "seconds": round(time.monotonic() - started, 3)}
            except (openai.APITimeoutError, asyncio.TimeoutError):
                reason, wait = f"no answer within {self.endpoint.timeout:g} s", None
                repeats["timeout"] += 1
            except openai.APIConnectionError as error:
                reason, wait = f"no connection ({error.__cause__ or error})", None
                repeats["connection"] += 1
                if not self._reached and repeats["connection"] >= 3:
                    raise MachineError(
                        f"cannot reach {self.endpoint.shown_url}: {error.__cause__ or error}\n"
                        "  remedy:  check --base-url and the network; the same command goes on"
                    ) from None
            except openai.APIStatusError as error:
                self._reached = True
                said = self._said(error)
                if not _is_transient(error):
                    return self._refused(error.status_code, said)
                reason, wait = f"HTTP {error.status_code}: {said}", _retry_after(error.response)
                limited = error.status_code == 429
                repeats["rate_limit" if limited else "server_error"] += 1
            except openai.APIError as error:  # an answer that is no answer
                reason, wait = f"unreadable answer ({type(error).__name__}: {error})", None
                repeats["server_error"] += 1
            self._give_up_after_too_many(repeats, reason)
            await self._wait(wait, repeats)

    def _send(self, client: AsyncOpenAI, question: Question) -> Any:
        messages: list[Any] = list(question.messages)
        if question.key in self._last:
            text, problem = self._last[question.key]
            messages += [
                {"role": "assistant", "content": text},
                {
                    "role": "user",
                    "content": f"That cannot be used: {problem}. Answer again, as asked above.",
                },
            ]
        extra: dict[str, Any] = {}
        if self.endpoint.temperature is not None:
            extra["temperature"] = self.endpoint.temperature
        return client.chat.completions.create(
            model=self.endpoint.model,
            messages=messages,
            max_tokens=self.endpoint.max_tokens,
            **extra,
        )

    def _refused(self, status: int, said: str) -> dict[str, Any]:
        """A request that the endpoint does not take: this row's fault, or the settings'."""
        if status in _FATAL or (not self.answers and not self._last):
            raise UserError(
                f"the endpoint refuses: HTTP {status}: {said}",
                where=self.endpoint.shown_url,
                remedy={
                    401: f"check the key in ${self.endpoint.key_env}",
                    402: "check the account's balance",
                    403: f"check the key in ${self.endpoint.key_env} and what it may use",
                    404: f"check --base-url and --model {self.endpoint.model}",
                }.get(status, "check --model and --temperature (or 'none')"),
            )
        return {"text": None, "problem": f"the endpoint refuses: HTTP {status}: {said}"}

    def _said(self, error: Any) -> str:
        """The server's message, on one line and without the key."""
        body = error.body if isinstance(error.body, dict) else {}
        text = " ".join(str(body.get("message") or error.message).split())
        key = _key(self.endpoint)
        return (text.replace(key, "***") if key else text)[:300]

    def _give_up_after_too_many(self, repeats: Counter[str], reason: str) -> None:
        failed = repeats["timeout"] + repeats["connection"] + repeats["server_error"]
        if failed >= TRIES or repeats["rate_limit"] >= RATE_LIMIT_TRIES:
            raise _NoAnswer(reason)

    async def _wait(self, told: float | None, repeats: Counter[str]) -> None:
        """Wait before sending again: as long as told, which holds all workers, or ever longer."""
        if told is None:
            told = min(60.0, self.endpoint.first_wait * 2 ** (sum(repeats.values()) - 1))
            await asyncio.sleep(told * (0.5 + random.random() / 2))
            return
        if told > LONGEST_WAIT:
            raise MachineError(
                f"{self.endpoint.shown_url} asks to wait {told:,.0f} s\n"
                "  remedy:  start the same command again then; it goes on where it stopped"
            )
        self._not_before = max(self._not_before, time.monotonic() + told)

    async def _until_allowed(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left)


def _is_transient(error: Any) -> bool:
    if error.status_code == 429:
        if getattr(error, "code", None) == "insufficient_quota":
            raise MachineError(
                "the endpoint's quota is used up\n"
                "  remedy:  raise it, then start the same command again; it goes on"
            )
        return True
    return error.status_code in (408, 409) or error.status_code >= 500


def _retry_after(response: Any) -> float | None:
    """Seconds that a `Retry-After` header asks for: a number, or a date."""
    from email.utils import parsedate_to_datetime

    text = response.headers.get("retry-after")
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _read(answer: Any, question: Question) -> dict[str, Any]:
    """Text and tokens of a chat completion; tokens are estimated where it does not say."""
    choice = answer.choices[0] if getattr(answer, "choices", None) else None
    text = (choice.message.content if choice is not None and choice.message else None) or ""
    usage: Any = getattr(answer, "usage", None)
    known = getattr(usage, "prompt_tokens", None) is not None
    asked = sum(len(message["content"]) for message in question.messages)
    return {
        "text": text.encode("utf-8", "replace").decode(),  # half a character could not be sent back
        "finish": getattr(choice, "finish_reason", None),
        "tokens_in": usage.prompt_tokens if known else asked // _CHARS_PER_TOKEN,
        "tokens_out": (usage.completion_tokens or 0) if known else len(text) // _CHARS_PER_TOKEN,
        "estimated": not known,
    }


def _key(endpoint: Endpoint) -> str | None:
    """The key, read from the environment each time and kept nowhere."""
    return os.environ.get(endpoint.key_env) or None


def need_key(endpoint: Endpoint) -> None:
    """UserError when a public endpoint is named without a key, or the key would go in the clear.

    So it is for what is no address at all.
    """
    if not is_address(endpoint.base_url):
        raise UserError(
            f"'{endpoint.shown_url}' is no address",
            where="the endpoint",
            allowed="http://... or https://...",
            remedy="give the address up to and including /v1",
        )
    if endpoint.is_local:
        return
    if _key(endpoint) is None:
        raise UserError(
            f"no key in ${endpoint.key_env}",
            where=endpoint.shown_url,
            remedy=f"export {endpoint.key_env}=..., or --key-env NAME of the variable that has it",
        )
    if urlsplit(endpoint.base_url).scheme != "https":
        raise UserError(
            "the key would go over the network in the clear",
            where=endpoint.shown_url,
            remedy="use https://",
        )
