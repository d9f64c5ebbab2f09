"""Random models without a tokenizer, small enough to be made for each test."""

from typing import Any

import torch

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def random_model(maker: Any, config: Any) -> Any:
    """A seeded model of class `maker`, whose likeliest token is never a near tie."""
    torch.manual_seed(1)
    model = maker(config).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model
