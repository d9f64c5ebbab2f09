"""The anchor is read once a batch, and the answers are those of the whole prompts."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tell_plugins.bridge.cpu import share_prefix
from tests.random_models import SMALL, random_model

KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SMALL)),
    "gemma": (GemmaForCausalLM, GemmaConfig(**SMALL, head_dim=16)),
    "qwen": (Qwen2ForCausalLM, Qwen2Config(**SMALL)),
}
PREFIX = [7 + i % 200 for i in range(120)]
TAILS = ([5, 6, 7], [9], [250, 3, 251, 12, 13, 14, 15], [5, 6, 8, 8])
PAD, NEW = 0, 12


def _model(kind: str) -> PreTrainedModel:
    return cast(PreTrainedModel, random_model(*KINDS[kind]))


def _batch(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = [[PAD] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


class _Template:
    """ms-swift's `template.generate`, and how many prompt tokens went through the model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.read = model, 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _model: Any, _args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[1] > 1:  # not a step of decoding
            self.read += kwargs["input_ids"].numel()

    def generate(self, model: PreTrainedModel, **kwargs: Any) -> torch.Tensor:
        return model.generate(**kwargs)

    def answers(self, rows: list[list[int]], **changes: Any) -> torch.Tensor:
        config = GenerationConfig(
            **{"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": PAD, **changes}
        )
        self.read = 0
        batch = _batch(rows)
        said = self.generate(self.model, **batch, generation_config=config)
        return said[:, batch["input_ids"].shape[1] :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_the_answers_are_the_same_and_the_prefix_is_read_once(kind: str, penalty: float) -> None:
    template = _Template(_model(kind))
    rows = [[*PREFIX, *tail] for tail in TAILS]
    plain = template.answers(rows, repetition_penalty=penalty)
    before = template.read
    share_prefix(template)
    shared = template.answers(rows, repetition_penalty=penalty)
    assert torch.equal(shared, plain)
    assert len({tuple(row) for row in plain.tolist()}) == len(TAILS)
    assert before == len(TAILS) * (len(PREFIX) + 7)
    assert template.read == len(PREFIX) + len(TAILS) * 7


@pytest.mark.parametrize(
    "rows",
    [
        [[*PREFIX, 5]],  # one row
        [[5, *PREFIX], [6, *PREFIX]],  # nothing in common
        [[*PREFIX[:20], 5, 6], [*PREFIX[:20], 6, 7]],  # too little
    ],
)
def test_what_does_not_pay_is_left_alone(rows: list[list[int]]) -> None:
    template = _Template(_model("llama"))
    plain, before = template.answers(rows), template.read
    share_prefix(template)
    assert torch.equal(template.answers(rows), plain)
    assert template.read == before


def test_beams_and_further_inputs_are_left_alone() -> None:
    template = _Template(_model("llama"))
    share_prefix(template)
    rows = [[*PREFIX, *tail] for tail in TAILS]
    whole = len(TAILS) * (len(PREFIX) + 7)
    template.answers(rows, num_beams=2)
    assert template.read == 2 * whole  # each beam reads it
    batch = _batch(rows)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    template.read = 0
    config = GenerationConfig(max_new_tokens=2, pad_token_id=PAD)
    template.generate(template.model, **batch, position_ids=positions, generation_config=config)
    assert template.read == whole


def test_another_kind_of_cache_is_tried_once() -> None:
    """A sliding window may have dropped the beginning: the whole prompts are read."""
    torch.manual_seed(1)
    config = MistralConfig(**SMALL, sliding_window=64)
    template = _Template(MistralForCausalLM(config).eval())
    rows = [[*PREFIX, *tail] for tail in TAILS]
    plain, before = template.answers(rows), template.read
    share_prefix(template)
    for extra in (len(PREFIX), 0):
        assert torch.equal(template.answers(rows), plain)
        assert template.read == before + extra
