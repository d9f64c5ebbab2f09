"""Asking an OpenAI-compatible endpoint many questions: checked, resumable, accounted for.

Every answer is checked; one that fails is asked again with the reason. A journal holds each answer
as it comes, so a run that was killed goes on without asking twice.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.files import Shape
from tell_plugins.core.progress import track
from tell_plugins.core.tokens import TokenCounter, tokenizer_file
from tell_plugins.preparation.chat import NoAnswer, Refused, Server, api_url, side_by_side
from tell_plugins.preparation.journal import Journal
from tell_plugins.preparation.transfer import Unreachable

Message = dict[str, str]
Check = Callable[[str, str], str | None]  # (key, answer) -> what is wrong with it, or None

SPEND_FREELY = 1.0  # an estimated cost up to this needs no --yes
_GIVEN_UP = 3  # requests in a row that got no answer at all: the endpoint is down
_CHARS_PER_TOKEN = 4
_HINT = "check --model and --temperature (or 'none')"


@dataclass(frozen=True)
class Question:
    """What is asked. `key` names it in the journal for good."""

    key: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Endpoint(Server):
    """Where and how to ask. Prices are per million tokens, in any currency.

    Attributes:
        attempts: answers asked for at most, for one question, over all runs.
    """

    concurrency: int = 8
    attempts: int = 3
    temperature: float | None = 0.0
    max_tokens: int = 600
    price_in: float | None = None
    price_out: float | None = None


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
    given: dict[str, Any] = {part.name: getattr(args, part.name, None) for part in fields(Endpoint)}
    given |= {"base_url": api_url(args.base_url), "tries": Endpoint.tries}
    return Endpoint(**given)


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
    asker.run([question for question in questions if asker.is_open(question.key)])
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
    again = sum(record.get("sent_again", 0) for record in records)
    tokens_in = sum(record.get("tokens_in", 0) for record in records)
    tokens_out = sum(record.get("tokens_out", 0) for record in records)
    answered = [record for record in records if record.get("text") is not None]
    cost = _cost(endpoint, tokens_in, tokens_out)
    return {
        "model": endpoint.model,
        "requests": len(records) + again,
        "answers": len(answered),
        "refused_by_check": sum(record.get("problem") is not None for record in answered),
        "sent_again": again,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "tokens_estimated_for": sum(bool(record.get("estimated")) for record in answered),
        "price_in": endpoint.price_in,
        "price_out": endpoint.price_out,
        "cost": None if cost is None else round(cost, 4),
    }


class _Asker:
    """The state of one run: what is answered, and what was wrong with the other answers."""

    def __init__(self, check: Check, endpoint: Endpoint, journal: Journal) -> None:
        self.check, self.endpoint, self.journal = check, endpoint, journal
        self.answers: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self._attempts: Counter[str] = Counter()
        self._last: dict[str, tuple[str, str]] = {}  # key -> refused answer, reason
        self._lock = threading.Lock()
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

    def run(self, questions: Sequence[Question]) -> None:
        with track(len(questions), f"asking {self.endpoint.model}", "rows") as bar:
            for _ in side_by_side(self._answer, questions, self.endpoint.concurrency):
                bar.update(1)

    def _answer(self, question: Question) -> None:
        """Ask until the answer is right, or the attempts are used up."""
        while self.is_open(question.key):
            try:
                self._record(question.key, **self._asked(question))
                self._given_up = 0
            except Refused as error:  # this row's fault, or the settings'
                if not self.answers and not self._last:
                    raise
                self._record(question.key, problem=_first_line(error))
            except (NoAnswer, Unreachable) as error:
                again, told = self.endpoint.tries - 1, _first_line(error)
                self._record(question.key, problem=told, sent_again=again, attempt=False)
                self._stop_when_down(error)
                return

    def _stop_when_down(self, error: MachineError) -> None:
        with self._lock:
            self._given_up += 1
        never = isinstance(error, Unreachable) and not self._reached
        if never or self._given_up >= _GIVEN_UP:
            kept = f"{len(self.answers):,} answers are kept in {paths.shown(self.journal.path)}"
            raise MachineError(f"{kept}\n" + str(error))

    def _asked(self, question: Question) -> dict[str, Any]:
        """Ask once; the answer as values of a record."""
        messages = list(question.messages)
        if question.key in self._last:
            text, problem = self._last[question.key]
            again = f"That cannot be used: {problem}. Answer again, as asked above."
            messages += [
                {"role": "assistant", "content": text},
                {"role": "user", "content": again},
            ]
        request: dict[str, Any] = {"model": self.endpoint.model, "messages": messages}
        if self.endpoint.temperature is not None:
            request["temperature"] = self.endpoint.temperature
        started = time.monotonic()
        answer = self.endpoint.ask(hint=_HINT, max_tokens=self.endpoint.max_tokens, **request)
        self._reached = True
        asked = sum(len(message["content"]) for message in question.messages)
        known = answer.tokens_in is not None
        return {
            # half a character could not be sent back
            "text": answer.text.encode("utf-8", "replace").decode(),
            "finish": answer.finish,
            "tokens_in": answer.tokens_in if known else asked // _CHARS_PER_TOKEN,
            "tokens_out": answer.tokens_out if known else len(answer.text) // _CHARS_PER_TOKEN,
            "estimated": not known,
            "seconds": round(time.monotonic() - started, 3),
            "sent_again": answer.sent_again,
        }

    def _record(self, key: str, *, text: str | None = None, **values: Any) -> None:
        record = {"key": key, "text": text, **values}
        if text is not None:
            record["problem"] = self.check(key, text)
        with self._lock:
            self.journal.append(record)
            self._note(record)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
