"""What answers sooner on a CPU answers the same."""

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tell_plugins.bridge import patches
from tests.random_models import SMALL, random_model


def test_the_head_reads_a_tensor_in_one_piece():
    """A scattered one would be multiplied row by row, with a copy of the weights for each."""
    model, seen = random_model(LlamaForCausalLM, LlamaConfig(**SMALL)), []
    ids = torch.arange(4 * 20).reshape(4, 20) + 5
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    asked["generation_config"] = GenerationConfig(max_new_tokens=12, pad_token_id=0)
    expected = model.generate(**asked)
    patches.pack_before_head(model)
    model.lm_head.register_forward_hook(lambda _, given, __: seen.append(given[0].is_contiguous()))
    assert torch.equal(model.generate(**asked), expected)
    assert set(seen) == {True}
