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
from tell_plugins.bridge.protocol import Ask, Decoding
from tell_plugins.core.errors import UserError

_PROBES = ("A", "7", "(", "é")  # user turns that share no token at either end
_TOP_P = 0.9
_INSTRUCTION = {"temperature": 1.0, "max_new_tokens": 160}
_ANSWER = Decoding("answer", 0.7, top_p=_TOP_P)
Written = tuple[str, bool]  # a text, and whether the model ended it itself (else it was cut)


class SelfWriter:
    """Loads a model through ms-swift and draws from it; one call is one batch, with its seed.

    Attributes:
        opening: the token ids that instructions are written from.
        turn_end: what ends a user's turn: one token (<|im_end|>), or a piece of text ([/INST]).
    """

    def __init__(self, values: Mapping[str, Any], batch_size: int) -> None:
        let_qwen_generate()
        self._engine = LocalEngine(values, {}, batch_size=batch_size)
        self.tokenizer = self._engine.template.tokenizer
        own = bool(self.tokenizer.chat_template) and not values.get("system")
        turns = [self._own_turn(text) if own else self._engine.prompt_ids(text) for text in _PROBES]
        self.opening = os.path.commonprefix(turns)
        closing = os.path.commonprefix([turn[::-1] for turn in turns])[::-1]
        if not self.opening or not closing:
            raise UserError(
                "the chat template has no fixed text around the user's turn",
                where=str(values.get("model")),
                remedy="name the model's template with --template",
            )
        self.turn_end = self.tokenizer.decode(closing).split()[0]

    def _own_turn(self, user: str) -> list[int]:
        messages = [{"role": "user", "content": user}]
        # transformers 5 gives a dict by default
        options = {"add_generation_prompt": True, "return_dict": False}
        return list(self.tokenizer.apply_chat_template(messages, **options))

    def answers(
        self, instructions: Sequence[str], max_new_tokens: int, seed: int, batch: int
    ) -> list[Written]:
        if not instructions:
            return []
        seed = batch_seed(seed, batch, "answer")
        replies = self._engine.answer(instructions, Ask(_ANSWER, max_new_tokens, seed))
        return [(reply.text.strip(), reply.finish_reason == "stop") for reply in replies]

    @torch.inference_mode()
    def instructions(self, count: int, seed: int, batch: int) -> list[Written]:
        model, ends = self._engine.model.eval(), self._end_tokens()
        opening = torch.tensor([self.opening] * count, device=model.device)
        config = GenerationConfig(
            do_sample=True,
            top_p=_TOP_P,
            top_k=0,
            eos_token_id=ends,
            pad_token_id=ends[0],
            **_INSTRUCTION,
        )
        torch.manual_seed(batch_seed(seed, batch, "instruction"))
        output = model.generate(
            input_ids=opening, attention_mask=torch.ones_like(opening), generation_config=config
        )
        return [self._read(row, ends) for row in output[:, len(self.opening) :].tolist()]

    def _end_tokens(self) -> list[int]:
        """Tokens that end a user's turn, or all."""
        known = self._engine.model.generation_config.eos_token_id
        turn_end = self.tokenizer.encode(self.turn_end, add_special_tokens=False)
        found = {self.tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}
        found |= set(turn_end) if len(turn_end) == 1 else set()
        return sorted(token for token in found if token is not None)

    def _read(self, tokens: Sequence[int], ends: Sequence[int]) -> Written:
        place = next((place for place, token in enumerate(tokens) if token in ends), None)
        text = str(self.tokenizer.decode(tokens[:place]))
        head, stop, _ = text.partition(self.turn_end)
        return head.strip(), place is not None or bool(stop)


def batch_seed(seed: int, batch: int, purpose: str) -> int:
    """The seed of one batch, independent of all others."""
    digest = hashlib.blake2b(f"{purpose}|{seed}|{batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
