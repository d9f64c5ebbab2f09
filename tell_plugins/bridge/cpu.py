"""What makes answering on a CPU faster and leaves the answers as they are.

On a GPU it changes nothing. docs/benchmarks.md has what each is worth.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from tell_plugins.bridge.patches import patch

_ROOM = 128  # tokens that a growing cache makes room for at a time
_WORTH = 256  # tokens saved in a batch below which the extra forward does not pay
# whatever else is passed may depend on where the padding is
_KNOWN = {
    "input_ids",
    "attention_mask",
    "generation_config",
    "stopping_criteria",
    "use_model_defaults",
}


def share_heads() -> None:
    """Let transformers hand shared key and value heads to torch as they are, on a CPU.

    Where a mask pads the batch, transformers (4.56, 5) copies keys and values for every query head
    at every step, since some CUDA kernels ask for it. Without the copies a step of 16 rows of
    SmolLM2-135M takes 0.6 of the time.
    """

    def changed(original: Any) -> Any:
        def use_gqa_in_sdpa(attention_mask: Any, key: Any, *args: Any, **kwargs: Any) -> bool:
            on_cpu = key.device.type == "cpu"
            return on_cpu or bool(original(attention_mask, key, *args, **kwargs))

        return use_gqa_in_sdpa

    module = importlib.import_module("transformers.integrations.sdpa_attention")
    patch(module, "use_gqa_in_sdpa", changed)


def pack_before_head(model: Any) -> None:
    """Let a model's head read the last position of each row from a tensor in one piece.

    `generate` keeps one position of a whole batch, which lies scattered; for such a tensor torch
    (2.13) multiplies row by row and copies the head's weights for each. For 64 rows of SmolLM2-135M
    on a CPU that took 12 s, where the product itself takes 0.04 s: half the time of 64 answers.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))


def grow_in_place() -> None:
    """Let transformers' plain cache append in place, on a CPU without gradients.

    transformers (4.56, 5) appends each new token by copying all keys and values so far, which on a
    CPU takes as long as the model's matrix products: 60 of the 230 ms that a step of 16 rows of
    SmolLM2-135M takes at 400 tokens. With room behind them only the new token is written. Caches
    that append in a way of their own (sliding windows) stay as they are.
    """

    def changed(original: Any) -> Any:
        @functools.wraps(original)
        def update(
            self: Any, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            held = self.keys, self.values
            empty = any(part is None or part.ndim != keys.ndim for part in held)
            if empty or keys.device.type != "cpu" or torch.is_grad_enabled():
                copied: tuple[torch.Tensor, torch.Tensor] = original(
                    self, keys, values, *args, **kwargs
                )
                return copied
            self.keys = _append(self, "keys", held[0], keys)
            self.values = _append(self, "values", held[1], values)
            return self.keys, self.values

        return update

    patch(DynamicLayer, "update", changed)


def _append(layer: Any, name: str, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`held` (rows, heads, tokens, size) and `new` behind it, as a view into a larger tensor.

    The larger tensor is taken again only if nobody has replaced `held` (cropping, repeating and
    reordering do) since it was made.
    """
    size, end = held.shape[-2], held.shape[-2] + new.shape[-2]
    large, view = layer.__dict__.get(f"_tell_{name}", (None, None))
    if view is not held or large.shape[-2] < end or _closed(large):
        shape = (*held.shape[:-2], end + _ROOM, held.shape[-1])
        large = held.new_empty(shape)
        large[..., :size, :] = held
    large[..., size:end, :] = new
    view = large[..., :end, :]
    setattr(layer, f"_tell_{name}", (large, view))
    return view


def _closed(large: torch.Tensor) -> bool:
    """Whether torch forbids to write into it here: made in inference mode, which has ended."""
    return large.is_inference() and not torch.is_inference_mode_enabled()


# ------------------------------------------------------------------------- the shared beginning


def share_prefix(template: Any) -> None:
    """Let a template of ms-swift generate with a batch's shared beginning computed once, on a CPU.

    An anchor stands in front of every query, so most of a batch's prompt tokens are the same. The
    shared beginning goes through the model once, its keys and values are handed to transformers'
    `generate` as a cache, and the padding moves behind it:

        pad pad A A A q       A A A pad pad q
        pad A A A q q    ->   A A A pad q q      A: from the cache
        A A A q q q           A A A q q q

    The mask hides the padding wherever it is, and positions are counted over the mask. A model
    whose cache is not a plain one of keys and values (sliding windows, a model's own code)
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
