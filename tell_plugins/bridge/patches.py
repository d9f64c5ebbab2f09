"""What is changed in transformers and ms-swift while they run, each with the reason for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def patch(owner: Any, name: str, changed: Callable[[Any], Any]) -> None:
    """Put what `changed` makes of an attribute in its place, once a process; none is left alone."""
    original = getattr(owner, name, None)
    if original is not None and not getattr(original, "_tell", False):
        new = changed(original)
        new._tell = True
        setattr(owner, name, new)


def let_qwen_generate() -> None:
    """Let Qwen-7B-Chat's remote code generate under transformers 4.56.

    Its attention expects no cache or tuples; transformers hands a DynamicCache to every class that
    does not say otherwise. https://huggingface.co/Qwen/Qwen-7B-Chat/blob/main/modeling_qwen.py
    """
    from transformers.generation.utils import GenerationMixin

    def changed(original: Any) -> Any:
        def supports(self: Any) -> bool:
            is_qwen = any(base.__name__ == "QWenLMHeadModel" for base in type(self).__mro__)
            return not is_qwen and bool(original.__func__(type(self)))

        return supports

    patch(GenerationMixin, "_supports_default_dynamic_cache", changed)


def let_channel_rows_be_answered() -> None:
    """Let `swift infer` and `predict_with_generate` answer rows of a TELL data set.

    Its rows have a `channel`, which ms-swift (4.0 and 4.6) hands on to the collator even where it
    generates, and `generate` refuses it; only the training loss has a use for it.
    """
    from swift.template import Template

    def changed(original: Any) -> Any:
        def encode(self: Any, *args: Any, **kwargs: Any) -> Any:
            encoded = original(self, *args, **kwargs)
            if not self.is_training:
                for part in encoded if isinstance(encoded, list) else [encoded]:
                    part.pop("channel", None)
            return encoded

        return encode

    patch(Template, "encode", changed)
