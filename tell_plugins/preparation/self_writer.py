"""A model that writes instructions from an empty user turn, and then answers them.

The prompt is the model's own chat template, its default system prompt included, up to where the
user's words begin (as in Magpie, https://arxiv.org/abs/2406.08464): the model writes what it
expects to be asked. It answers through the template that it is trained with.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from tell_plugins.bridge.engine import LocalEngine
from tell_plugins.bridge.patches import let_qwen_generate
from tell_plugins.core.errors import UserError

_PROBES = ("A", "7", "(", "é")  # user turns that share no token at either end
_TOP_P = 0.9
_INSTRUCTION = {"temperature": 1.0, "max_new_tokens": 160}
_ANSWER_TEMPERATURE = 0.7
Written = tuple[str, bool]  # a text, and whether the model ended it itself (else it was cut)


class SelfWriter:
    """Loads a model through ms-swift and draws from it; one call is one batch, with its seed."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        let_qwen_generate()
        self._engine = LocalEngine(values, {}, batch_size=1)
        self._model, self._template = self._engine.model.eval(), self._engine.template
        self._tokenizer = self._template.tokenizer
        own = bool(self._tokenizer.chat_template) and not values.get("system")
        turns = [self._own_turn(text) if own else self._engine.prompt_ids(text) for text in _PROBES]
        self._opening = os.path.commonprefix(turns)
        closing = os.path.commonprefix([turn[::-1] for turn in turns])[::-1]
        if not self._opening or not closing:
            raise UserError(
                "the chat template has no fixed text around the user's turn",
                where=str(values.get("model")),
                remedy="name the model's template with --template",
            )
        # what ends a user's turn: one token (<|im_end|>), or a piece of text ([/INST])
        self._turn_end = self._tokenizer.decode(closing).split()[0]
        self._ends = self._end_tokens()

    @property
    def opening(self) -> str:
        """The prompt that instructions are written from, as text."""
        return str(self._tokenizer.decode(self._opening))

    def instructions(self, count: int, seed: int, batch: int) -> list[Written]:
        """`count` instructions."""
        seed = batch_seed(seed, batch, "instruction")
        written = self._generate([self._opening] * count, seed, **_INSTRUCTION)
        return [self._cut_at_turn_end(text, ended) for text, ended in written]

    def answers(
        self, instructions: Sequence[str], max_new_tokens: int, seed: int, batch: int
    ) -> list[Written]:
        """The model's answer to each instruction."""
        prompts = [self._engine.prompt_ids(text) for text in instructions]
        written = self._generate(
            prompts,
            batch_seed(seed, batch, "answer"),
            temperature=_ANSWER_TEMPERATURE,
            max_new_tokens=max_new_tokens,
        )
        return [(text.strip(), ended) for text, ended in written]

    def _own_turn(self, user: str) -> list[int]:
        messages = [{"role": "user", "content": user}]
        ids = self._tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            return_dict=False,  # transformers 5 gives a dict by default
        )
        return list(ids)

    def _end_tokens(self) -> list[int]:
        """Tokens that end a turn: of the tokenizer, of the model, of the template."""
        known = self._model.generation_config.eos_token_id
        found = {
            self._tokenizer.eos_token_id,
            *([known] if isinstance(known, int) else known or []),
        }
        for word in [self._turn_end, *self._template.template_meta.stop_words]:
            ids = (
                self._tokenizer.encode(word.strip(), add_special_tokens=False)
                if isinstance(word, str)
                else list(word)
            )
            found |= set(ids) if len(ids) == 1 else set()
        return sorted(token for token in found if token is not None)

    def _cut_at_turn_end(self, text: str, ended: bool) -> Written:
        head, stop, _ = text.partition(self._turn_end)
        return head.strip(), ended or bool(stop)

    @torch.inference_mode()
    def _generate(
        self, prompts: Sequence[Sequence[int]], seed: int, **settings: float
    ) -> list[Written]:
        """What follows each prompt; padded on the left, drawn under `seed`."""
        if not prompts:
            return []
        pad = self._tokenizer.pad_token_id
        pad = self._ends[0] if pad is None else pad
        width = max(map(len, prompts))
        device = self._model.device
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        config = GenerationConfig(
            do_sample=True,
            top_p=_TOP_P,
            top_k=0,
            eos_token_id=self._ends,
            pad_token_id=pad,
            **settings,
        )
        torch.manual_seed(seed)
        output = self._model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return [self._read(row) for row in output[:, width:].tolist()]

    def _read(self, tokens: list[int]) -> Written:
        ends = [place for place, token in enumerate(tokens) if token in self._ends]
        kept = tokens[: ends[0]] if ends else tokens
        return str(self._tokenizer.decode(kept)), bool(ends)


def batch_seed(seed: int, batch: int, purpose: str) -> int:
    """The seed of one batch, independent of all others."""
    digest = hashlib.blake2b(f"{purpose}|{seed}|{batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
