"""The cache that grows in place holds and gives what transformers' own does."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.cache_utils import DynamicCache, DynamicLayer

from tell_plugins.bridge import cpu
from tests.random_models import SMALL, random_model

ROWS = torch.arange(4 * 20).reshape(4, 20) + 5


@pytest.fixture
def plain() -> Iterator[Any]:
    """transformers' own update, which is in force again afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        own = getattr(DynamicLayer.update, "__wrapped__", DynamicLayer.update)
        patch.setattr(DynamicLayer, "update", own)
        yield own


def _llama() -> Any:
    return random_model(LlamaForCausalLM, LlamaConfig(**SMALL))


def _answers(model: Any, **changes: Any) -> torch.Tensor:
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 0, **changes}
    mask = torch.ones_like(ROWS)
    mask[0, :7] = mask[1, :2] = 0
    torch.manual_seed(3)
    config = GenerationConfig(**settings)
    return model.generate(input_ids=ROWS, attention_mask=mask, generation_config=config)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"do_sample": True, "temperature": 2.0, "top_k": 50},
        {"num_beams": 3},  # reorders the rows at every step
        {"num_return_sequences": 2, "do_sample": True},
    ],
)
def test_the_answers_are_the_same(plain, monkeypatch, how):
    model = _llama()
    expected = _answers(model, **how)
    monkeypatch.setattr(cpu, "_ROOM", 5)
    cpu.grow_in_place()
    assert DynamicLayer.update is not plain
    assert torch.equal(_answers(model, **how), expected)


def _grown(steps: int) -> tuple[Any, list[torch.Tensor]]:
    torch.manual_seed(0)
    cache, parts = DynamicCache(), []
    with torch.inference_mode():
        for size in (6, *[1] * steps):
            parts.append(torch.randn(2, 3, size, 4))
            cache.update(parts[-1], -parts[-1], 0)
    return cache, parts


def test_new_tokens_are_written_behind_the_old_ones(plain):
    """In the same memory, which is made anew only when it is full."""
    cpu.grow_in_place()
    cache, parts = _grown(3)
    first = cache.layers[0].keys
    assert torch.equal(first, torch.cat(parts, -2))
    assert torch.equal(cache.layers[0].values, -torch.cat(parts, -2))
    assert cache.get_seq_length() == 9
    with torch.inference_mode():
        for _ in range(200):
            part = torch.randn(2, 3, 1, 4)
            parts.append(part)
            cache.update(part, -part, 0)
    assert torch.equal(cache.layers[0].keys, torch.cat(parts, -2))
    assert torch.equal(first, torch.cat(parts[:4], -2))  # what was given out has not changed
    places = set()
    with torch.inference_mode():
        for _ in range(50):
            part = torch.randn(2, 3, 1, 4)
            places.add(cache.update(part, part, 0)[0].data_ptr())
    assert len(places) <= 2


def test_a_cache_that_was_changed_goes_on_from_what_it_holds(plain):
    """Cropped, repeated, some rows chosen, or copied: never the old memory."""
    cpu.grow_in_place()
    part = torch.ones(4, 3, 1, 4)
    cache, parts = _grown(3)
    whole = torch.cat(parts, -2)
    with torch.inference_mode():
        before = cache.layers[0].keys
        cache.crop(5)
        held, _ = cache.update(part[:2], part[:2], 0)
        assert torch.equal(held, torch.cat([whole[..., :5, :], part[:2]], -2))
        assert torch.equal(before, whole)
        twin = copy.deepcopy(cache)
        twin.update(-part[:2], -part[:2], 0)
        cache.update(part[:2], part[:2], 0)
        assert torch.equal(twin.layers[0].keys, torch.cat([held, -part[:2]], -2))
        assert torch.equal(cache.layers[0].keys, torch.cat([held, part[:2]], -2))
        held = cache.layers[0].keys
        cache.batch_repeat_interleave(2)
        again, _ = cache.update(part, part, 0)
        assert torch.equal(again, torch.cat([held.repeat_interleave(2, 0), part], -2))
        cache.batch_select_indices(torch.tensor([1]))
        one, _ = cache.update(part[:1], part[:1], 0)
        assert torch.equal(one, torch.cat([again[1:2], part[:1]], -2))


def test_a_cache_made_in_inference_mode_goes_on_outside(plain):
    """torch forbids to write into its tensors then."""
    cpu.grow_in_place()
    cache, parts = _grown(2)
    with torch.no_grad():
        for _ in range(2):
            parts.append(torch.ones(2, 3, 1, 4))
            cache.update(parts[-1], parts[-1], 0)
    assert torch.equal(cache.layers[0].keys, torch.cat(parts, -2))


def test_training_keeps_the_copying_cache(plain):
    """Writing in place would break the gradients."""
    cpu.grow_in_place()
    model = _llama()
    out = model(input_ids=ROWS[:, :8], use_cache=True)
    more = model(input_ids=ROWS[:, 8:], past_key_values=out.past_key_values, labels=ROWS[:, 8:])
    more.loss.backward()
    assert not hasattr(out.past_key_values.layers[0], "_tell_keys")


def test_the_head_reads_a_tensor_in_one_piece():
    """A scattered one would be multiplied row by row, with a copy of the weights for each."""
    model, seen = _llama(), []
    expected = _answers(model)
    cpu.pack_before_head(model)
    model.lm_head.register_forward_hook(lambda _, given, __: seen.append(given[0].is_contiguous()))
    assert torch.equal(_answers(model), expected)
    assert set(seen) == {True}
