"""The anchor is read once a batch: what all prompts begin with is not computed again for each row.

An anchor stands in front of every query, so most of a batch's prompt tokens are the same. On a CPU
reading them is much of the work. The shared beginning goes through the model once, its keys and
values are handed to transformers' `generate` as a cache, and the padding moves behind it:

    pad pad A A A q       A A A pad pad q
    pad A A A q q    ->   A A A pad q q      A: from the cache
    A A A q q q           A A A q q q

The mask hides the padding wherever it is, and positions are counted over the mask, so the answers
are the same. vLLM and servers do this themselves (prefix caching).
"""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

_WORTH = 256  # tokens saved in a batch below which the extra forward does not pay
# whatever else is passed may depend on where the padding is
_KNOWN = {
    "input_ids",
    "attention_mask",
    "generation_config",
    "stopping_criteria",
    "use_model_defaults",
}


def share_prefix(template: Any) -> None:
    """Let a template of ms-swift generate with a batch's shared beginning computed once, on a CPU.

    A model whose cache is not a plain one of keys and values (sliding windows, a model's own code)
    generates as ever.
    """
    original = template.generate
    unfit: set[int] = set()  # models that were tried in vain

    def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
        if args or id(model) in unfit or not _fits(kwargs):
            return original(model, *args, **kwargs)
        moved, size = _prefix_first(kwargs["input_ids"], kwargs["attention_mask"])
        if size * (len(moved["input_ids"]) - 1) < _WORTH:
            return original(model, **kwargs)
        cache = _cache(model, moved["input_ids"][:1, :size])
        if cache is None:
            unfit.add(id(model))
            return original(model, **kwargs)
        cache.batch_repeat_interleave(len(moved["input_ids"]))
        return original(model, **{**kwargs, **moved}, past_key_values=cache)

    template.generate = generate


def _fits(kwargs: dict[str, Any]) -> bool:
    ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
    if ids is None or mask is None or set(kwargs) - _KNOWN:
        return False
    config = kwargs.get("generation_config")
    plain = getattr(config, "num_beams", 1) == 1 and getattr(config, "num_return_sequences", 1) == 1
    left = bool((mask[:, 1:] >= mask[:, :-1]).all())  # padded on the left, if at all
    return ids.device.type == "cpu" and ids.ndim == 2 and len(ids) > 1 and plain and left


def _prefix_first(ids: torch.Tensor, mask: torch.Tensor) -> tuple[dict[str, torch.Tensor], int]:
    """The inputs (rows, length) with the padding behind the shared beginning, and its length."""
    pads = (mask == 0).sum(1).tolist()
    size = _shared([row[pad:] for row, pad in zip(ids, pads, strict=True)])

    def move(row: torch.Tensor, pad: int) -> torch.Tensor:
        return torch.cat([row[pad : pad + size], row[:pad], row[pad + size :]])

    rows = {"input_ids": ids, "attention_mask": mask}
    return {
        name: torch.stack([move(row, pad) for row, pad in zip(values, pads, strict=True)])
        for name, values in rows.items()
    }, size


def _shared(rows: list[torch.Tensor]) -> int:
    """How many tokens all rows begin with; at least one of each row stays for the model to read."""
    tokens = [row.tolist() for row in rows]
    return min(len(os.path.commonprefix(tokens)), min(map(len, tokens)) - 1)


@torch.inference_mode()
def _cache(model: Any, prefix: torch.Tensor) -> DynamicCache | None:
    """Keys and values of the prefix (1, tokens), or None where the cache is of another kind."""
    cache = model(input_ids=prefix, use_cache=True).past_key_values
    layers = getattr(cache, "layers", [])
    plain = all(type(layer).__name__ == "DynamicLayer" for layer in layers)
    return cache if isinstance(cache, DynamicCache) and layers and plain else None
