"""An engine that answers as a script says, for tests of what stands around an engine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from tell_plugins.bridge.protocol import History
from tell_plugins.evaluation import engines
from tell_plugins.evaluation.rivals import AnswerTable
from tell_plugins.recipe.recipes import Recipe


class ScriptedEngine(AnswerTable):
    """Answers every prompt by `script(recipe, prompt)`; a loss is one for each character."""

    def __init__(self, recipe: Recipe, script: Callable[[Recipe, str], str]) -> None:
        model = str(recipe.get("model"))
        super().__init__("scripted", lambda prompt: script(recipe, prompt), model)

    @contextmanager
    def scaled(self, name: str, scale: float) -> Iterator[None]:
        yield

    def prompt_tokens(self, prompts: Sequence[str], history: History = ()) -> list[int]:
        return [len(prompt) for prompt in prompts]

    def response_losses(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        return [(float(len(response)), len(response)) for _, response in pairs]


def answer_by_script(monkeypatch: pytest.MonkeyPatch, script: Callable[[Recipe, str], str]) -> None:
    """Let `eval` answer by a `ScriptedEngine` instead of loading a model."""

    def make(kind: str, recipe: Recipe, *adapters: Any, **more: Any) -> Any:
        return ScriptedEngine(recipe, script)

    monkeypatch.setattr(engines, "make_engine", make)
