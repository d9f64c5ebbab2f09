"""Which engine answers: ms-swift's own on this machine, or any OpenAI-compatible URL."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tell_plugins.bridge.embedded_model import is_embedded
from tell_plugins.bridge.protocol import Ask, Engine, History, Reply, conversation, system_text
from tell_plugins.core.errors import UserError, nearest, raise_all, unknown
from tell_plugins.evaluation.adapters import Adapter
from tell_plugins.preparation.endpoint import Endpoint, Refused, api_url, side_by_side
from tell_plugins.recipe.models import model_folder, need_model
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.settings_rules import check_model

LOCAL = ("transformers", "vllm")
_TIMEOUT, _TRIES = 600.0, 6  # seconds of a request to a server, and how often it is sent


def is_url(kind: str) -> bool:
    """Whether a kind of engine is the address of a server."""
    return "://" in kind


def make_engine(
    kind: str,
    recipe: Recipe,
    adapters: Sequence[Adapter] = (),
    *,
    batch_size: int,
    model_name: str | None = None,
) -> Engine:
    """The engine of that kind with the recipe's model and these adapters, or with one whole model
    in its place; or the model that a URL serves, where `model_name` is how the server calls it.

    Raises UserError for another kind or a model that is none, MachineError for a hub's model that
    cannot be had, and what the engines raise.
    """
    need_kind(kind, model_name)
    named = {a.engine_name: a.path for a in adapters if a.path and a.engine_name}
    if is_url(kind):
        system = system_text(recipe.get("system")) or ""
        return UrlEngine(kind, named, model_name=model_name, system=system, workers=batch_size)
    for whole in (adapter for adapter in adapters if adapter.whole):  # alone in its load
        recipe, named = recipe.with_values(model=str(whole.path)), {}
    _need_model(recipe)
    from tell_plugins.bridge import engine

    made = engine.VllmEngine if kind == "vllm" else engine.LocalEngine
    return made(recipe.values, named, batch_size=batch_size)


def _need_model(recipe: Recipe) -> None:
    """See to it that the model can be had: ms-swift would ask a hub about a folder that is gone."""
    raise_all(list(check_model(recipe)))
    model = recipe.text("model")
    if model_folder(model) is None and not is_embedded(model):
        need_model(model, recipe.flag("use_hf"))


def acting(engine: Any, adapter: Adapter) -> AbstractContextManager[None]:
    """The engine answering as this adapter; a whole model of its own load is its base model."""
    if adapter.scale != 1:
        scaled: AbstractContextManager[None] = engine.scaled(adapter.engine_name, adapter.scale)
        return scaled
    own_load = adapter.whole and not isinstance(engine, UrlEngine)
    active: AbstractContextManager[None] = engine.adapter(None if own_load else adapter.engine_name)
    return active


def need_kind(kind: str, model_name: str | None) -> None:
    """Raise UserError for a kind of engine that is none, or that cannot run here."""
    if is_url(kind):
        return
    if kind not in LOCAL:
        raise unknown("engine", kind, [*LOCAL, "http://HOST:PORT/v1"], "--engine")
    if model_name is not None:
        raise UserError(
            f"a server's model is named, but engine '{kind}' takes the recipe's",
            where="--model-name",
            remedy="leave it away, or name the server's URL with --engine",
        )
    if kind == "vllm" and importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed",
            where="--engine vllm",
            allowed="transformers, or the URL of a server",
            remedy="pip install vllm (needs a GPU), or serve the model elsewhere with vLLM and "
            "pass --engine http://HOST:PORT/v1",
        )


class UrlEngine:
    """Answers prompts through a server's chat completions; the key is `$OPENAI_API_KEY`.

    `adapters` are names that are to be tested; one that the server lists is asked for. Without
    `model_name` the first that the server lists is. An empty `system` leaves the system prompt to
    the server. `workers` requests are under way at once. Raises UserError for an address, key or
    model name that the server does not take, MachineError when it fails again and again.
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
    ) -> None:
        self._server = Endpoint(api_url(url), timeout=_TIMEOUT, tries=_TRIES)
        self._server.need_key()
        self.name = f"url {self._server.shown_url}"
        self._system, self._workers, self._adapters = system, workers, set(adapters)
        self._plain = False  # whether the server refuses what is not in OpenAI's own API
        self._named = model_name is not None
        self._listed = self._list()
        self.model_name = self._model = model_name or self._listed[0]

    def _list(self) -> list[str]:
        """The names of the models that the server lists; it may list none if one was named."""
        try:
            listed = self._server.models()
        except UserError:
            if not self._named:
                raise
            return []
        if not listed and not self._named:
            where, remedy = self._server.shown_url, "name one with --model-name"
            raise UserError("the server lists no model", where=where, remedy=remedy)
        return listed

    @contextlib.contextmanager
    def adapter(self, name: str | None) -> Iterator[None]:
        """Ask for one adapter inside the block, or for the model itself for None.

        A server that lists the adapter's name is asked for it. Where it does not, the model of
        `--model-name`, or the only one, is taken to be that adapter: what a server answers with is
        its own affair. Raises UserError when several models are listed and none fits.
        """
        before, self._model = self._model, self._served(name)
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
                    where=self._server.shown_url,
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
            where=self._server.shown_url,
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
        bare = self._size("Hi")
        if bare is None or bare != self._size(anchor + "Hi"):
            return False
        return (self._size("Hi" * 50) or 0) > bare

    def _size(self, query: str) -> int | None:
        messages = conversation(query, (), self._system)
        return self._send(messages, temperature=0.0, max_tokens=1).prompt_tokens

    def answer(self, prompts: Sequence[str], ask: Ask) -> list[Reply]:
        """One reply a prompt, in order; the requests run side by side."""

        def asked(item: tuple[int, str]) -> Reply:
            place, prompt = item
            own_seed = (ask.seed * 1009 + place) % 2**31  # within what servers take
            return self._ask(prompt, ask._replace(seed=own_seed))

        return list(side_by_side(asked, list(enumerate(prompts)), self._workers))

    def _ask(self, prompt: str, ask: Ask) -> Reply:
        how = ask.decoding
        asked: dict[str, Any] = {
            "messages": conversation(prompt, ask.history, self._system),
            "max_tokens": ask.max_new_tokens,
            "seed": ask.seed,
            **_known(temperature=how.temperature, top_p=how.top_p),
        }
        # what OpenAI's own API does not know can be left away where that changes nothing
        extra = _known(repetition_penalty=how.repetition_penalty, top_k=how.top_k)
        needed = extra != {"repetition_penalty": 1.0}
        if needed or not self._plain:
            try:
                return self._send(**asked, extra_body=extra)
            except Refused:
                if needed:
                    raise
        answer = self._send(**asked)
        self._plain = True  # it takes the request without the extras, so they were the reason
        return answer

    def _send(self, messages: list[dict[str, str]], **settings: Any) -> Reply:
        hint = "check --model-name; one that takes no top_k answers --decoding greedy only"
        return self._server.ask(hint=hint, model=self._model, messages=messages, **settings)


def _known(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
