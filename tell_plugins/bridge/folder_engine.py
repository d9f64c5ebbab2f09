"""A model's folder asked as anyone would: transformers' pipeline and the folder's chat template.

Nothing of ms-swift takes part, nor of this project's templates: what an exported folder answers
here it answers elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

from tell_plugins.bridge.protocol import Ask, History, Reply, conversation


class FolderEngine:
    """Answers greedily with the model in a folder, or the adapter; on a CPU in float32."""

    name = "transformers pipeline"
    context: int | None = None

    def __init__(self, folder: Path) -> None:
        self.model_name = folder.name
        model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._config = GenerationConfig.from_pretrained(folder, do_sample=False)
        model = model.cuda() if torch.cuda.is_available() else model.float()
        self._ask = pipeline("text-generation", model=model, tokenizer=self._tokenizer)

    @contextlib.contextmanager
    def adapter(self, name: str | None) -> Iterator[None]:
        """There is one model alone."""
        yield

    def prompt_tokens(self, prompts: Sequence[str], history: History = ()) -> list[int]:
        """The number of tokens of each prompt in the folder's chat template."""
        written = [
            self._tokenizer.apply_chat_template(
                conversation(prompt, history), tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
        return self._counts(written)

    def _counts(self, texts: list[str]) -> list[int]:
        return [len(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def answer(self, prompts: Sequence[str], ask: Ask) -> list[Reply]:
        """One reply a prompt, in order; the prompts are answered as one batch."""
        self._config.max_new_tokens = ask.max_new_tokens
        replies = self._ask(
            [conversation(prompt, ask.history) for prompt in prompts],
            generation_config=self._config,
            batch_size=len(prompts),
            return_full_text=False,
        )
        texts = [str(reply[0]["generated_text"]) for reply in replies]
        return [
            Reply(text, "length" if count >= ask.max_new_tokens else "stop", count)
            for text, count in zip(texts, self._counts(texts), strict=True)
        ]
