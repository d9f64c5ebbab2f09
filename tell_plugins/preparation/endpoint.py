"""Asking an OpenAI-compatible endpoint many questions: checked, resumable, accounted for.

Every answer is checked; one that fails is asked for again with the reason. A journal holds each
good answer as it comes, so a run that was killed goes on without asking twice.
"""

from __future__ import annotations

import argparse
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.files import Shape
from tell_plugins.core.progress import track
from tell_plugins.core.tokens import TokenCounter, tokenizer_file
from tell_plugins.preparation.chat import NoAnswer, Refused, Server, api_url, side_by_side
from tell_plugins.preparation.download import Unreachable
from tell_plugins.preparation.journal import Journal

Message = dict[str, str]
Check = Callable[[str, str], "str | None"]  # (key, answer) -> what is wrong with it, or None

_GIVEN_UP = 3  # requests in a row that got no answer at all: the endpoint is down
_HINT = "check --model and --temperature (or 'none')"


@dataclass(frozen=True)
class Question:
    """What is asked. `key` names it in the journal for good."""

    key: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Endpoint(Server):
    """Where and how to ask; `attempts` answers are asked for at most, for one question."""

    concurrency: int = 8
    attempts: int = 3
    temperature: float | None = 0.0
    max_tokens: int = 600


class AskedRecord(Shape):
    """A record of the journal: an answer that passed the check."""

    key: str
    text: str | None = None


class Outcome(NamedTuple):
    """Answers that passed the check and, for the others, the last reason why not.

    Attributes:
        account: what this run took: requests, answers, tokens.
    """

    answers: dict[str, str]
    failures: dict[str, str]
    account: dict[str, int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `endpoint_of` reads."""
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


def endpoint_of(args: argparse.Namespace) -> Endpoint:
    """The endpoint that `args` name. Raises UserError for a missing or impossible value, or a key
    that is missing."""
    for flag, value in (("--base-url", args.base_url), ("--model", args.model)):
        if not value:
            remedy = "--base-url URL --model NAME of an OpenAI-compatible endpoint"
            raise UserError(f"{flag} is missing", where="command line", remedy=remedy)
    for name in ("concurrency", "attempts", "timeout", "max_tokens"):
        if getattr(args, name) <= 0:
            where = "--" + name.replace("_", "-")
            raise UserError("too small", where=where, allowed="more than 0", remedy="raise it")
    given: dict[str, Any] = {part.name: getattr(args, part.name, None) for part in fields(Endpoint)}
    given |= {"base_url": api_url(args.base_url), "tries": Endpoint.tries}
    endpoint = Endpoint(**given)
    endpoint.need_key()
    return endpoint


def ask(
    questions: Sequence[Question],
    check: Check,
    endpoint: Endpoint,
    journal: Journal,
    answer_tokens: int,
    yes: bool,
) -> Outcome:
    """Ask what the journal does not answer yet, and return all answers.

    Raises UserError when the endpoint refuses key, model or request, or needs a --yes,
    MachineError when it is out of reach or out of quota. The journal keeps what was answered.
    """
    asker = _Asker(check, endpoint, journal)
    todo = [question for question in questions if question.key not in asker.answers]
    if len(todo) < len(questions):
        print(f"{len(questions) - len(todo):,} rows are answered already")
    need_consent(todo, endpoint, answer_tokens, yes)
    try:
        with track(len(todo), f"asking {endpoint.model}", "rows") as bar:
            for _ in side_by_side(asker.answer, todo, endpoint.concurrency):
                bar.update(1)
    finally:
        print("taken:", ", ".join(f"{count:,} {what}" for what, count in asker.account.items()))
    failures = {q.key: asker.reasons[q.key] for q in todo if q.key not in asker.answers}
    answers = {q.key: asker.answers[q.key] for q in questions if q.key not in failures}
    return Outcome(answers, failures, dict(asker.account))


def need_consent(
    questions: Sequence[Question], endpoint: Endpoint, answer_tokens: int, yes: bool
) -> None:
    """Print what asking `questions` once will take; UserError when that needs a --yes.

    A local endpoint needs none.
    """
    texts = [message["content"] for question in questions for message in question.messages]
    path = tokenizer_file()
    counted = int(TokenCounter(path).count(texts).sum()) if path else sum(map(len, texts)) // 4
    text = (
        f"{len(questions):,} rows to ask {endpoint.model} at {endpoint.shown_url}: about "
        f"{counted:,} tokens asked, {answer_tokens * len(questions):,} answered"
    )
    if questions and not endpoint.is_local and not yes:
        raise UserError(
            text,
            where="cost",
            allowed="a local endpoint without asking",
            remedy="add --yes to go on (rows asked again add to it); --rows 20 tries it small",
        )
    print(text, flush=True)


class _Asker:
    """The state of one run: what is answered, and what was wrong with the other answers."""

    def __init__(self, check: Check, endpoint: Endpoint, journal: Journal) -> None:
        self.check, self.endpoint, self.journal = check, endpoint, journal
        known = {record["key"]: record.get("text") for record in journal.records}
        self.answers = {key: text for key, text in known.items() if text and not check(key, text)}
        self.reasons: dict[str, str] = {}
        self.account = Counter({"requests": 0, "tokens asked": 0, "tokens answered": 0})
        self._lock = threading.Lock()
        self._reached = bool(self.answers)
        self._given_up = 0

    def answer(self, question: Question) -> None:
        """Ask until the answer is right, or the attempts are used up."""
        messages = list(question.messages)
        for _ in range(self.endpoint.attempts):
            text, problem = None, ""
            try:
                text = self._asked(messages)
                problem = self.check(question.key, text) or ""
            except Refused as error:  # this row's fault, or the settings'
                if not self._reached:
                    raise
                problem = str(error).splitlines()[0]
            except (NoAnswer, Unreachable) as error:
                self._give_up(question.key, error)
                return
            with self._lock:
                if text is not None and not problem:
                    self.answers[question.key] = text
                    self.journal.append({"key": question.key, "text": text})
                    return
                self.reasons[question.key] = problem
            if text is not None:
                again = f"That cannot be used: {problem}. Answer again, as asked above."
                messages = [
                    *question.messages,
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": again},
                ]

    def _asked(self, messages: Sequence[Message]) -> str:
        request: dict[str, Any] = {"model": self.endpoint.model, "messages": messages}
        if self.endpoint.temperature is not None:
            request["temperature"] = self.endpoint.temperature
        answer = self.endpoint.ask(hint=_HINT, max_tokens=self.endpoint.max_tokens, **request)
        with self._lock:
            self._reached, self._given_up = True, 0
            self.account["requests"] += 1 + answer.sent_again
            self.account["tokens asked"] += answer.tokens_in or 0
            self.account["tokens answered"] += answer.tokens_out or 0
        return answer.text.encode("utf-8", "replace").decode()  # half a character cannot go back

    def _give_up(self, key: str, error: MachineError) -> None:
        """Note a row that got no answer at all. Raises MachineError where the endpoint is down."""
        with self._lock:
            self.reasons[key] = str(error).splitlines()[0]
            self.account["requests"] += self.endpoint.tries
            self._given_up += 1
        never = isinstance(error, Unreachable) and not self._reached
        if never or self._given_up >= _GIVEN_UP:
            kept = f"{len(self.answers):,} answers are kept in {paths.shown(self.journal.path)}"
            raise MachineError("\n".join([kept, str(error)])) from None
