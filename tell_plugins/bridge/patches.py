"""What is changed in transformers and ms-swift while they run, each with the reason for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def patch(owner: Any, name: str, new: Callable[..., Any]) -> None:
    """Call `new(original, ...)` in place of a function, once a process; none is left alone."""
    original = getattr(owner, name, None)
    if original is None or hasattr(original, "_tell"):
        return

    def replaced(*args: Any, **kwargs: Any) -> Any:
        return new(original, *args, **kwargs)

    replaced._tell = True  # type: ignore[attr-defined]
    setattr(owner, name, replaced)


def let_qwen_generate() -> None:
    """Let Qwen-7B-Chat's remote code generate under transformers 4.56.

    Its attention expects no cache or tuples; transformers hands a DynamicCache to every class that
    does not say otherwise. https://huggingface.co/Qwen/Qwen-7B-Chat/blob/main/modeling_qwen.py
    """
    from transformers.generation.utils import GenerationMixin

    def supports(original: Any, self: Any) -> bool:
        is_qwen = any(base.__name__ == "QWenLMHeadModel" for base in type(self).__mro__)
        return not is_qwen and bool(original.__func__(type(self)))

    patch(GenerationMixin, "_supports_default_dynamic_cache", supports)


def let_channel_rows_be_answered() -> None:
    """Let `swift infer` and `predict_with_generate` answer rows of a TELL data set.

    Its rows have a `channel`, which ms-swift (4.0 and 4.6) hands on to the collator even where it
    generates, and `generate` refuses it; only the training loss has a use for it.
    """
    from swift.template import Template

    def encode(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        encoded = original(self, *args, **kwargs)
        if not self.is_training:
            for part in encoded if isinstance(encoded, list) else [encoded]:
                part.pop("channel", None)
        return encoded

    patch(Template, "encode", encode)


# --- what makes answering on a CPU faster and leaves the answers as they are; docs/benchmarks.md
# has what each is worth


def share_heads() -> None:
    """Let transformers hand shared key and value heads to torch as they are, on a CPU.

    Where a mask pads the batch, transformers (4.56, 5) copies keys and values for every query head
    at every step, since some CUDA kernels ask for it.
    """

    def use_gqa_in_sdpa(original: Any, mask: Any, key: Any, *args: Any, **kwargs: Any) -> bool:
        return key.device.type == "cpu" or bool(original(mask, key, *args, **kwargs))

    module = importlib.import_module("transformers.integrations.sdpa_attention")
    patch(module, "use_gqa_in_sdpa", use_gqa_in_sdpa)


def pack_before_head(model: Any) -> None:
    """Let a model's head read the last position of each row from a tensor in one piece.

    `generate` keeps one position of a whole batch, which lies scattered; for such a tensor torch
    (2.13) multiplies row by row and copies the head's weights for each. For 64 rows of SmolLM2-135M
    on a CPU that took 12 s, where the product itself takes 0.04 s: half the time of 64 answers.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
