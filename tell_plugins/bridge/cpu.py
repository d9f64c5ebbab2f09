"""What makes answering on a CPU faster and leaves the answers as they are.

On a GPU it changes nothing. docs/benchmarks.md has what each is worth.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from tell_plugins.bridge.patches import patch

_ROOM = 128  # tokens that a growing cache makes room for at a time


def share_heads() -> None:
    """Let transformers hand shared key and value heads to torch as they are, on a CPU.

    Where a mask pads the batch, transformers (4.56, 5) copies keys and values for every query head
    at every step, since some CUDA kernels ask for it.
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
